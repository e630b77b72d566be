"""Private keys as DER: parsing, PKCS#8, and the encryption that SwarmKit reads (reference/node-and-ca §4.1 to §4.3).

PBES2 is built by hand: `cryptography` encrypts with PBKDF2-HMAC-SHA256 and names the PRF; Go's reader ignores that
field, always uses SHA-1, and would call the password wrong (§12.8).
"""

from __future__ import annotations

import hashlib
import os

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from swarm.errors import BadInput, Locked
from swarm.pki import der
from swarm.pki.pem import Block, blocks

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

PLAIN = "PRIVATE KEY"
LEGACY = "EC PRIVATE KEY"
ENCRYPTED = "ENCRYPTED PRIVATE KEY"

_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_PBKDF2 = bytes.fromhex("06092a864886f70d01050c")
_AES_256_CBC = bytes.fromhex("060960864801650304012a")
_ITERATIONS = 2048
_MAX_ITERATIONS = 10_000_000
"""What a file may ask for: about ten seconds of work, so that a damaged count does not hang the reader."""
_SALT_BYTES = 8
_KEY_BYTES = 32
_BLOCK_BYTES = 16


def generate() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def to_pkcs8(key: PrivateKey) -> bytes:
    """PKCS#8 DER, plain; for EC keys without the curve inside the inner ECPrivateKey, with the public key (§3.3)."""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def to_pem(key: PrivateKey) -> bytes:
    """`PRIVATE KEY`: PKCS#8, plain."""
    return Block(PLAIN, to_pkcs8(key)).encode()


def to_sec1_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """`EC PRIVATE KEY`, the form of a root's key (§3.1)."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def load(data: bytes) -> PrivateKey:
    """A key from PKCS#8, PKCS#1 or SEC1 DER; bytes behind it (padding) are ignored. Raises BadInput."""
    try:
        _, _, end = der.read(data)
        key = serialization.load_der_private_key(data[:end], None)
    except (BadInput, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadInput("malformed private key") from error
    if not isinstance(key, PrivateKey):
        raise BadInput("malformed private key")
    return key


def load_pem(data: bytes) -> PrivateKey:
    """The first key of a PEM text, plain; `EC PARAMETERS` blocks are skipped. Raises BadInput."""
    for block in blocks(data):
        if block.type != "EC PARAMETERS":
            return load(block.data)
    raise BadInput("malformed private key")


def public_key_info(key: PrivateKey) -> bytes:
    """Raw DER SubjectPublicKeyInfo of the key's public half."""
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def is_encrypted(block: Block) -> bool:
    """Decided from the content, never from the title (§4.1)."""
    return is_encrypted_legacy(block) or _looks_encrypted(block.data)


def is_encrypted_legacy(block: Block) -> bool:
    """Whether it is encrypted as RFC 1423 says (§4.3)."""
    return "DEK-Info" in block.headers


def encrypt(plain: bytes, password: bytes) -> bytes:
    """EncryptedPrivateKeyInfo: PBES2, PBKDF2-HMAC-SHA1 (no PRF field) 2048 times, AES-256-CBC."""
    salt, iv = os.urandom(_SALT_BYTES), os.urandom(_BLOCK_BYTES)
    cipher = Cipher(algorithms.AES256(_stretch(password, salt, _ITERATIONS)), modes.CBC(iv)).encryptor()
    missing = _BLOCK_BYTES - len(plain) % _BLOCK_BYTES
    sealed = cipher.update(plain + bytes([missing]) * missing) + cipher.finalize()
    kdf = der.encode(
        der.SEQUENCE,
        _PBKDF2,
        der.encode(der.SEQUENCE, der.encode(der.OCTET_STRING, salt), der.encode_integer(_ITERATIONS)),
    )
    scheme = der.encode(der.SEQUENCE, _AES_256_CBC, der.encode(der.OCTET_STRING, iv))
    algorithm = der.encode(der.SEQUENCE, _PBES2, der.encode(der.SEQUENCE, kdf, scheme))
    return der.encode(der.SEQUENCE, algorithm, der.encode(der.OCTET_STRING, sealed))


def encrypt_legacy(plain: bytes, password: bytes) -> tuple[bytes, dict[str, str]]:
    """RFC 1423 as old SwarmKit reads it (§4.3): the encrypted bytes, and the headers that go with them."""
    iv = os.urandom(_BLOCK_BYTES)
    cipher = Cipher(algorithms.AES256(_legacy_key(password, iv)), modes.CBC(iv)).encryptor()
    missing = _BLOCK_BYTES - len(plain) % _BLOCK_BYTES
    sealed = cipher.update(plain + bytes([missing]) * missing) + cipher.finalize()
    return sealed, {"Proc-Type": "4,ENCRYPTED", "DEK-Info": f"AES-256-CBC,{iv.hex()}"}


def decrypt(block: Block, password: bytes) -> bytes:
    """The plain DER of an encrypted block. Raises Locked if the password is not it, BadInput for an unknown scheme."""
    legacy = block.headers.get("DEK-Info")
    plain = _decrypt_legacy(block, legacy, password) if legacy else _decrypt_pkcs8(block.data, password)
    try:
        load(plain)
    except BadInput as error:
        raise Locked(
            "x509: decryption password incorrect" if legacy else "pkcs8: incorrect password",
            remedy="give the swarm's present unlock key",
        ) from error
    return plain[: der.read(plain)[2]]


def _decrypt_pkcs8(data: bytes, password: bytes) -> bytes:
    try:
        (_, algorithm, _), (_, sealed, _) = der.children(data)[:2]
        (_, _, scheme), (_, _, parameters) = list(der.elements(algorithm))[:2]
        if scheme != _PBES2:
            raise BadInput("pkcs8: only PBES2 supported")
        kdf, cipher = (list(der.elements(content)) for _, content, _ in der.children(parameters)[:2])
        if kdf[0][2] != _PBKDF2:
            raise BadInput("pkcs8: only PBKDF2 supported")
        if cipher[0][2] != _AES_256_CBC:
            raise BadInput("pkcs8: only AES-256-CBC supported")
        (_, salt, _), (_, count, _) = list(der.elements(kdf[1][1]))[:2]
        iv = cipher[1][1]
    except (ValueError, IndexError) as error:
        raise BadInput("pkcs8: only PKCS #5 v2.0 supported") from error
    iterations = int.from_bytes(count, "big")
    if not 1 <= iterations <= _MAX_ITERATIONS:  # the number itself may have more digits than Python prints
        raise BadInput(f"pkcs8: its number of iterations is not between 1 and {_MAX_ITERATIONS}")
    if len(iv) != _BLOCK_BYTES or not sealed or len(sealed) % _BLOCK_BYTES:
        raise BadInput("pkcs8: invalid padding size")
    key = _stretch(password, salt, iterations)
    opener = Cipher(algorithms.AES256(key), modes.CBC(iv)).decryptor()
    return opener.update(sealed) + opener.finalize()


def _decrypt_legacy(block: Block, info: str, password: bytes) -> bytes:
    """RFC 1423: key from EVP_BytesToKey with MD5, salted with the first half of the IV."""
    name, _, iv_text = info.partition(",")
    try:
        iv = bytes.fromhex(iv_text)
    except ValueError as error:
        raise BadInput("malformed DEK-Info header") from error
    if name != "AES-256-CBC" or len(iv) != _BLOCK_BYTES or len(block.data) % _BLOCK_BYTES:
        raise BadInput(f"unsupported legacy encryption {name!r}")
    opener = Cipher(algorithms.AES256(_legacy_key(password, iv)), modes.CBC(iv)).decryptor()
    return opener.update(block.data) + opener.finalize()


def _legacy_key(password: bytes, iv: bytes) -> bytes:
    key = digest = b""
    while len(key) < _KEY_BYTES:
        digest = hashlib.md5(digest + password + iv[:8], usedforsecurity=False).digest()
        key += digest
    return key


def _looks_encrypted(data: bytes) -> bool:
    """Whether this is SEQUENCE { SEQUENCE { OID … } OCTET STRING }: a plain key starts with its version."""
    try:
        tags = [tag for tag, _, _ in der.children(data)]
    except BadInput:
        return False
    return tags == [der.SEQUENCE, der.OCTET_STRING]


def _stretch(password: bytes, salt: bytes, iterations: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha1", password, salt, iterations, _KEY_BYTES)
