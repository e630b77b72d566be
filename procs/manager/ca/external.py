"""Signers outside the swarm that speak cfssl's protocol over HTTPS (reference node-and-ca §5.8).

They are shown this node's manager certificate, and must themselves be certified by the swarm's root, or by the next one
while a rotation runs. `http.client` and `ssl` block, so the calls run in threads.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from procs.manager.gateway.tls import load_chain
from swarm.api import types_pb2
from swarm.errors import BadInput, Refused, SwarmvisorError
from swarm.pki import privatekey
from swarm.pki.certificate import CA_NAME, MANAGER_OU, Certificate, parse_bundle
from swarm.pki.credentials import Credentials
from swarm.pki.pem import normalize_pems

TIMEOUT = 5.0
"""Seconds for one URL."""
MAX_RESPONSE = 262_144
"""Bytes of an answer."""
CROSS_SIGN_PROFILE = "CA"
_ZERO_TIME = "0001-01-01T00:00:00Z"
_BASIC_CONSTRAINTS = "2.5.29.19"
_EXPIRED = (
    "the certificate that this manager shows to the signer has expired: have the signer take it this once, or give the "
    "swarm the key of its root: `swarmvisor swarm ca --rotate --ca-cert FILE --ca-key FILE`, with the present root"
)


class SignerUnavailable(Refused):
    """No signer gave an answer that counts; another try may get one."""


class SignerRefused(BadInput):
    """A signer said no, or what nobody can use."""


class Externals(Protocol):
    """What the check of a cluster's CA configuration needs of them."""

    async def reachable(self, urls: Sequence[str], root_pem: bytes) -> bool:
        """Whether one of `urls` is https and shakes hands with a certificate under `root_pem`."""
        ...

    async def cross_sign(self, urls: Sequence[str], root_pem: bytes, new_root: bytes, new_key: bytes) -> bytes:
        """PEM of `new_root`'s first certificate as issued by the signers' CA. Raises SwarmvisorError."""
        ...


def urls_for(external_cas: Iterable[types_pb2.ExternalCA], wanted: bytes, current: bytes) -> list[str]:
    """URLs of those that sign for the root `wanted`; an entry that names no root belongs to `current`."""
    normal = normalize_pems(wanted)
    return [
        entry.url
        for entry in external_cas
        if entry.protocol == types_pb2.ExternalCA.CFSSL and normalize_pems(entry.ca_cert or current) == normal
    ]


class ExternalCAs:
    """Asks them in the name of this manager; `credentials` gives the newest ones at each call."""

    def __init__(self, credentials: Callable[[], Credentials]) -> None:
        self._credentials = credentials

    async def reachable(self, urls: Sequence[str], root_pem: bytes) -> bool:
        """See Externals."""
        for url in urls:
            try:
                await asyncio.to_thread(_probe, url, self._credentials(), root_pem)
            except (OSError, ValueError, SwarmvisorError, http.client.HTTPException):
                continue
            return True
        return False

    async def cross_sign(self, urls: Sequence[str], root_pem: bytes, new_root: bytes, new_key: bytes) -> bytes:
        """See Externals."""
        body = await asyncio.to_thread(cross_sign_request, new_root, new_key)
        return normalize_pems(await self.ask(urls, root_pem, body))

    async def sign(self, urls: Sequence[str], root_pem: bytes, csr: bytes, cn: str, ou: str, org: str) -> bytes:
        """A node certificate (leaf, PEM). Raises SignerUnavailable, SignerRefused."""
        return await self.ask(urls, root_pem, sign_request(csr, cn, ou, org))

    async def ask(self, urls: Sequence[str], root_pem: bytes, request: dict[str, Any]) -> bytes:
        """The certificate of the first signer that gives one; else the last one's error."""
        failed: SwarmvisorError = SignerUnavailable("no external CA is configured")
        for url in urls:
            try:
                return await asyncio.to_thread(_post, url, self._credentials(), root_pem, request)
            except (SignerUnavailable, SignerRefused) as error:
                failed = type(error)(f"{url}: {error.message}")
        if isinstance(failed, SignerUnavailable) and self._credentials().not_after < time.time():
            raise SignerUnavailable(failed.message, remedy=_EXPIRED)
        raise failed


def sign_request(csr: bytes, cn: str, ou: str, org: str) -> dict[str, Any]:
    """The body for a node certificate."""
    hosts = [ou, cn, *([CA_NAME] if ou == MANAGER_OU else [])]
    return _request(csr, hosts, cn, [{"O": org, "OU": ou}])


def cross_sign_request(new_root: bytes, new_key: bytes) -> dict[str, Any]:
    """The body for a cross-signed root: a CSR with the new root's name, signed by its own key."""
    found = parse_bundle(new_root)
    key = privatekey.load_pem(new_key)
    if not found or not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise BadInput("could not parse new CA certificate")
    subject = found[0].parsed.subject
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    names = [
        {
            short: str(attribute.value)
            for short, oid in (("O", NameOID.ORGANIZATION_NAME), ("OU", NameOID.ORGANIZATIONAL_UNIT_NAME))
            for attribute in subject.get_attributes_for_oid(oid)
        }
    ]
    body = _request(csr, [], found[0].common_name, [name for name in names if name], CROSS_SIGN_PROFILE)
    value = x509.BasicConstraints(ca=True, path_length=None).public_bytes().hex()
    body["extensions"] = [{"id": _BASIC_CONSTRAINTS, "critical": True, "value": value}]
    return body


def read_answer(body: bytes) -> bytes:
    """The certificate in a signer's answer (status 200). Raises SignerUnavailable, SignerRefused with Go's texts."""
    try:
        answer = json.loads(body)
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise SignerUnavailable(f"unable to parse JSON response: {error}") from error
    if not isinstance(answer, dict):
        raise SignerUnavailable("unable to parse JSON response: it is not an object")
    errors = answer.get("errors")
    if isinstance(errors, list) and errors:
        said = [
            f"{e.get('code', 0)} {e.get('message', '')}" if isinstance(e, dict) else repr(e)[:80] for e in errors[:5]
        ]
        raise SignerRefused(f"response errors: {'; '.join(said)}")
    if answer.get("success") is not True:
        raise SignerRefused("certificate signing request failed")
    result = answer.get("result")
    if not isinstance(result, dict):
        raise SignerRefused("invalid result type")
    certificate = result.get("certificate")
    if not isinstance(certificate, str):
        raise SignerRefused("invalid result certificate field type")
    return certificate.encode("ascii", "replace")  # what is no PEM is found out by who reads it


def is_for(leaf: Certificate, csr: bytes) -> bool:
    """Whether a signed certificate is for the key in `csr` (PEM)."""
    request = x509.load_pem_x509_csr(csr)
    info = request.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return info == leaf.public_key


def _request(csr: bytes, hosts: list[str], cn: str, names: list[dict[str, str]], profile: str = "") -> dict[str, Any]:
    return {
        "hosts": hosts,
        "certificate_request": csr.decode("ascii", "replace"),
        "subject": {"CN": cn, "names": names, "SerialNumber": ""},
        "profile": profile,
        "crl_override": "",
        "label": "",
        "NotBefore": _ZERO_TIME,
        "NotAfter": _ZERO_TIME,
        "ReturnPrecert": False,
        "metadata": None,
    }


def _context(credentials: Credentials, root_pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=normalize_pems(root_pem).decode("ascii"))
    load_chain(context, credentials.certificate_pem, credentials.key_pem)
    return context


def _https(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        raise SignerUnavailable(f"{url} is not an https URL")
    return parts


def _connection(parts: SplitResult, credentials: Credentials, root_pem: bytes) -> http.client.HTTPSConnection:
    context = _context(credentials, root_pem)
    return http.client.HTTPSConnection(parts.hostname or "", parts.port or 443, timeout=TIMEOUT, context=context)


def _probe(url: str, credentials: Credentials, root_pem: bytes) -> None:
    connection = _connection(_https(url), credentials, root_pem)
    try:
        connection.connect()
    finally:
        connection.close()


def _post(url: str, credentials: Credentials, root_pem: bytes, request: dict[str, Any]) -> bytes:
    """One signer's certificate. The time-out is for each wait on the socket; the answer's size bounds their number."""
    body = json.dumps(request).encode()
    try:
        parts = _https(url)
        connection = _connection(parts, credentials, root_pem)
    except (ValueError, OSError) as error:
        raise SignerUnavailable(f"unable to perform certificate signing request: {error}") from error
    try:
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise SignerUnavailable(f"unable to perform certificate signing request: {error}") from error
        with response:  # the connection's own close leaves it open where there is more to read
            try:
                answer = response.read(MAX_RESPONSE)
            except (OSError, http.client.HTTPException) as error:
                raise SignerUnavailable(f"unable to read CSR response body: {error}") from error
        if response.status != http.client.OK:
            said = answer[:200].decode(errors="replace")
            raise SignerUnavailable(f"unexpected status code in CSR response: {response.status} - {said}")
        return read_answer(answer)
    finally:
        connection.close()
