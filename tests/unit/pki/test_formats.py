"""What our certificates, keys and requests look like, byte for byte where Go looks at bytes (node-and-ca §3, §4)."""

from __future__ import annotations

import datetime as dt
import hashlib
import shutil
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import BadInput, Locked
from swarm.pki import der, pem, privatekey
from swarm.pki.certificate import parse_bundle
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA, hash_for

NOW = 1_700_000_031.5  # 22:13:51.5, rounds up to 22:14:00
ROUNDED = 1_700_000_040


@pytest.fixture(scope="module")
def root() -> RootCA:
    return RootCA.create(now=NOW)


def printable_name(*attributes: tuple[str, str]) -> bytes:
    """A DER name of single-valued RDNs with PrintableString values, written independently of the code under test."""
    oids = {"O": "060355040a", "OU": "060355040b", "CN": "0603550403"}
    body = b""
    for oid, value in attributes:
        text = value.encode()
        pair = bytes.fromhex(oids[oid]) + bytes([0x13, len(text)]) + text
        inner = bytes([0x30, len(pair)]) + pair
        body += bytes([0x31, len(inner)]) + inner
    return bytes([0x30, len(body)]) + body


def extensions(certificate: x509.Certificate) -> list[tuple[x509.ObjectIdentifier, bool]]:
    return [(e.oid, e.critical) for e in certificate.extensions]


def test_root_has_swarmkits_shape(root: RootCA) -> None:
    (certificate,) = root.pool
    parsed = certificate.parsed
    assert certificate.subject == certificate.issuer == printable_name(("CN", "swarm-ca"))
    assert (certificate.not_before, certificate.not_after) == (ROUNDED - 300, ROUNDED - 300 + 630_720_000)
    assert parsed.version is x509.Version.v3
    assert extensions(parsed) == [
        (ExtensionOID.KEY_USAGE, True),
        (ExtensionOID.BASIC_CONSTRAINTS, True),
        (ExtensionOID.SUBJECT_KEY_IDENTIFIER, False),
    ]
    usage = parsed.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.public_bytes().hex() == "03020106"  # keyCertSign and cRLSign, nothing else
    constraints = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert constraints.public_bytes().hex() == "30030101ff"
    bits = parsed.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    assert certificate.subject_key_id == hashlib.sha1(bits).digest()
    assert root.key_pem.startswith(b"-----BEGIN EC PRIVATE KEY-----\n")
    assert root.certs == pem.normalize_pems(root.certs)
    assert root.digest == hashlib.sha256(root.certs).hexdigest()


@pytest.mark.parametrize(
    ("ou", "hosts"),
    [
        ("swarm-manager", ["swarm-manager", "node1", "swarm-ca"]),
        ("swarm-worker", ["swarm-worker", "node1"]),
    ],
)
def test_node_certificate_has_swarmkits_shape(root: RootCA, ou: str, hosts: list[str]) -> None:
    _, csr = new_request()
    leaf = parse_bundle(root.sign(csr, "node1", ou, "org1", 7200, now=NOW))[0]
    assert leaf.subject == printable_name(("O", "org1"), ("OU", ou), ("CN", "node1"))
    assert leaf.issuer == root.pool[0].subject
    assert (leaf.not_before, leaf.not_after) == (ROUNDED - 3600, ROUNDED + 7200)
    parsed = leaf.parsed
    assert extensions(parsed) == [
        (ExtensionOID.KEY_USAGE, True),
        (ExtensionOID.EXTENDED_KEY_USAGE, False),
        (ExtensionOID.BASIC_CONSTRAINTS, True),
        (ExtensionOID.SUBJECT_KEY_IDENTIFIER, False),
        (ExtensionOID.AUTHORITY_KEY_IDENTIFIER, False),
        (ExtensionOID.SUBJECT_ALTERNATIVE_NAME, False),
    ]
    found = {e.oid: e.value.public_bytes().hex() for e in parsed.extensions}
    assert found[ExtensionOID.KEY_USAGE] == "030205a0"
    assert found[ExtensionOID.EXTENDED_KEY_USAGE] == "301406082b0601050507030106082b06010505070302"
    assert found[ExtensionOID.BASIC_CONSTRAINTS] == "3000"
    assert found[ExtensionOID.AUTHORITY_KEY_IDENTIFIER] == "30168014" + root.pool[0].subject_key_id.hex()
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == hosts


def test_serials_are_20_random_bytes_with_the_top_bit_clear(root: RootCA) -> None:
    _, csr = new_request()
    serials = {
        parse_bundle(root.sign(csr, "n", "swarm-worker", "o", 0, now=NOW))[0].parsed.serial_number for _ in range(40)
    }
    assert len(serials) == 40
    assert all(serial < 1 << 159 for serial in serials)
    assert max(serials) >= 1 << 150


def test_expiry_under_an_hour_becomes_ninety_days(root: RootCA) -> None:
    _, csr = new_request()
    for asked, given_ in ((3600, 3600), (3599, 90 * 86400), (0, 90 * 86400)):
        leaf = parse_bundle(root.sign(csr, "n", "swarm-worker", "o", asked, now=NOW))[0]
        assert leaf.not_after == ROUNDED + given_


def test_names_that_are_not_printable_become_utf8(root: RootCA) -> None:
    _, csr = new_request()
    leaf = parse_bundle(root.sign(csr, "n", "swarm-worker", "o&*", 0, now=NOW))[0]
    assert bytes.fromhex("060355040a0c03") + b"o&*" in leaf.subject


def test_nothing_but_the_key_of_a_request_survives(root: RootCA) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "evil")]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("evil")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    leaf = parse_bundle(root.sign(greedy, "node1", "swarm-worker", "org1", 0, now=NOW))[0]
    assert b"evil" not in leaf.data
    assert leaf.basic_constraints == x509.BasicConstraints(ca=False, path_length=None)
    assert leaf.public_key == privatekey.public_key_info(key)


def test_issuer_bytes_are_copied_from_an_operators_ca() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, "Ünser CA"), x509.NameAttribute(NameOID.COUNTRY_NAME, "AT")]
    )
    start = dt.datetime.fromtimestamp(NOW - 60, dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=900))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA384())
    )
    certs = certificate.public_bytes(serialization.Encoding.PEM)
    ca = RootCA.from_pem(certs, privatekey.to_sec1_pem(key), certs, now=NOW)
    _, csr = new_request()
    leaf = parse_bundle(ca.sign(csr, "n", "swarm-worker", "o", 0, now=NOW))[0]
    assert leaf.issuer == ca.pool[0].subject
    assert isinstance(leaf.parsed.signature_hash_algorithm, hashes.SHA384)
    # the CA has no SKI, so the leaf can name none
    assert ExtensionOID.AUTHORITY_KEY_IDENTIFIER not in [oid for oid, _ in extensions(leaf.parsed)]


class Sized:
    """A key as far as its size goes: to make large ones takes seconds."""

    def __init__(self, bits: int) -> None:
        self.key_size = bits


@pytest.mark.parametrize(
    ("bits", "digest"), [(2048, "sha256"), (3071, "sha256"), (3072, "sha384"), (4095, "sha384"), (4096, "sha512")]
)
def test_rsa_signers_pick_the_digest_by_size(bits: int, digest: str) -> None:
    assert hash_for(Sized(bits)).name == digest  # type: ignore[arg-type]


def test_an_rsa_root_keeps_its_bytes_and_signs() -> None:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rsa")])
    start = dt.datetime.fromtimestamp(NOW - 60, dt.UTC)
    certs = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=900))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    key_pem = pem.Block(privatekey.PLAIN, privatekey.to_pkcs8(key)).encode()
    _, csr = new_request()
    ca = RootCA.from_pem(certs, key_pem, certs, now=NOW)
    assert (ca.certs, ca.key_pem, ca.signing_cert) == (certs, key_pem, certs)
    leaf = parse_bundle(ca.sign(csr, "n", "swarm-worker", "o", 0, now=NOW))[0]
    assert leaf.parsed.signature_hash_algorithm is not None
    assert leaf.parsed.signature_hash_algorithm.name == "sha256"


def test_request_is_empty_and_its_key_is_pkcs8_without_inner_curve() -> None:
    key_pem, csr_pem = new_request()
    csr = x509.load_pem_x509_csr(csr_pem)
    assert csr.subject.public_bytes() == b"\x30\x00"
    assert list(csr.extensions) == []
    assert csr.is_signature_valid
    block, rest = pem.decode(key_pem)
    assert block is not None
    assert (block.type, rest) == ("PRIVATE KEY", b"")
    version, algorithm, outer = der.children(block.data)
    assert version[1] == b"\0"
    assert algorithm[2].hex() == "301306072a8648ce3d020106082a8648ce3d030107"
    inner = der.children(outer[1])
    assert [tag for tag, _, _ in inner] == [der.INTEGER, der.OCTET_STRING, 0xA1]  # no [0] curve, but [1] public key


def test_encrypted_key_is_pbes2_with_sha1_and_no_prf() -> None:
    plain = privatekey.to_pkcs8(privatekey.generate())
    sealed = privatekey.encrypt(plain, b"kek")
    (_, algorithm, _), (_, body, _) = der.children(sealed)
    scheme, parameters = list(der.elements(algorithm))
    kdf, cipher = (list(der.elements(content)) for _, content, _ in der.elements(parameters[1]))
    assert scheme[2].hex() == "06092a864886f70d01050d"
    assert kdf[0][2].hex() == "06092a864886f70d01050c"
    salt, iterations = list(der.elements(kdf[1][1]))  # exactly two: no key length, no PRF
    assert (len(salt[1]), iterations[2].hex()) == (8, "02020800")
    assert cipher[0][2].hex() == "060960864801650304012a"
    assert (len(cipher[1][1]), len(body) % 16) == (16, 0)
    block = pem.Block(privatekey.ENCRYPTED, sealed)
    assert privatekey.is_encrypted(block)
    assert privatekey.decrypt(block, b"kek") == plain
    with pytest.raises(Locked, match="pkcs8: incorrect password"):
        privatekey.decrypt(block, b"other")


def test_key_encrypted_with_sha256_is_refused_as_go_refuses_it() -> None:
    sealed = privatekey.generate().private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"kek")
    )
    with pytest.raises((Locked, BadInput)):
        privatekey.decrypt(pem.Block(privatekey.ENCRYPTED, sealed), b"kek")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_openssl_agrees(root: RootCA, tmp_path) -> None:
    key_pem, csr = new_request()
    chain = root.sign(csr, "node1", "swarm-manager", "org1", 7200)
    (tmp_path / "root").write_bytes(root.certs)
    (tmp_path / "leaf").write_bytes(chain)
    block, _ = pem.decode(key_pem)
    assert block is not None
    (tmp_path / "key").write_bytes(pem.Block(privatekey.ENCRYPTED, privatekey.encrypt(block.data, b"pw")).encode())

    def openssl(*arguments: str) -> str:
        return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True, cwd=tmp_path).stdout

    at = str(parse_bundle(chain)[0].not_before + 60 * 60)
    assert "OK" in openssl("verify", "-attime", at, "-purpose", "sslserver", "-CAfile", "root", "leaf")
    assert openssl("pkey", "-in", "key", "-passin", "pass:pw", "-pubout") == openssl(
        "x509", "-in", "leaf", "-noout", "-pubkey"
    )
    (tmp_path / "legacy").write_text(openssl("ecparam", "-name", "prime256v1", "-genkey"))
    openssl("ec", "-in", "legacy", "-aes256", "-passout", "pass:pw", "-out", "sealed")
    sealed = next(pem.blocks((tmp_path / "sealed").read_bytes()))
    assert sealed.headers["Proc-Type"] == "4,ENCRYPTED"
    opened = privatekey.load(privatekey.decrypt(sealed, b"pw"))
    assert openssl("pkey", "-in", "legacy", "-pubout").encode() == opened.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    with pytest.raises(Locked, match="x509: decryption password incorrect"):
        privatekey.decrypt(sealed, b"wrong")


# -- PEM ---------------------------------------------------------------------------------------------------------------

header_text = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1)


@given(st.binary(max_size=200), st.dictionaries(header_text, header_text, max_size=4))
def test_pem_round_trips(data: bytes, headers: dict[str, str]) -> None:
    block, rest = pem.decode(pem.Block("PRIVATE KEY", data, headers).encode())
    assert (block, rest) == (pem.Block("PRIVATE KEY", data, headers), b"")


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from(
                [b"-----BEGIN X-----\n", b"\n-----END X-----\n", b"a: b\n", b"\n", b"QUJD", b"-----BEGIN ", b"-----"]
            ),
        ),
        max_size=12,
    )
)
def test_any_bytes_decode_without_an_exception(parts: list[bytes]) -> None:
    data = b"".join(parts)
    assert len(list(pem.blocks(data))) <= len(parts)
    normal = pem.normalize_pems(data)
    assert pem.normalize_pems(normal) == normal


def test_normalising_drops_garbage_headers_and_odd_lines() -> None:
    wanted = pem.Block("A", b"x" * 100).encode()
    odd = b"  junk\n" + pem.Block("A", b"x" * 100, {"h": "v"}).encode().replace(b"\n", b"\r\n") + b" tail"
    assert pem.normalize_pems(odd + b"\n" + wanted) == wanted + wanted
    assert pem.normalize_pems(b"") == pem.normalize_pems(b"pure garbage") == b""
    assert pem.normalize_pems(b" \n\t " + wanted + b"  " + wanted) == wanted + wanted, "Go trims before each block"


def test_proc_type_comes_first_then_byte_order() -> None:
    text = pem.Block("K", b"", {"b": "2", "Proc-Type": "4", "A": "1"}).encode()
    assert text == b"-----BEGIN K-----\nProc-Type: 4\nA: 1\nb: 2\n\n-----END K-----\n"


@given(st.binary(max_size=80))
def test_any_bytes_as_der_key_are_refused_in_words(data: bytes) -> None:
    with pytest.raises(BadInput):
        privatekey.load(data)
    block = pem.Block(privatekey.ENCRYPTED, data)
    with pytest.raises((BadInput, Locked)):
        privatekey.decrypt(block, b"kek")
