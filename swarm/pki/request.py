"""A fresh key and the request for its certificate (reference/node-and-ca §3.3)."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from swarm.pki import privatekey
from swarm.pki.pem import Block


def new_request() -> tuple[bytes, bytes]:
    """(key PEM, CSR PEM): P-256, PKCS#8 plain; an empty subject, no extensions, SHA-256."""
    key = privatekey.generate()
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    key_pem = Block(privatekey.PLAIN, privatekey.to_pkcs8(key)).encode()
    return key_pem, request.public_bytes(serialization.Encoding.PEM)
