"""The TLS side of the front: SwarmKit's server configuration (reference node-and-ca §5.1)."""

from __future__ import annotations

import os
import ssl

from swarm.errors import BadInput
from swarm.pki.pem import normalize_pems

CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
"""Suites of TLS 1.2; those of 1.3 are OpenSSL's own three."""

ALPN = "h2"


def server_context(certificate_pem: bytes, key_pem: bytes, root_pem: bytes) -> ssl.SSLContext:
    """A context that presents the whole chain in `certificate_pem` and asks for, but does not insist on, a client
    certificate that verifies under `root_pem`.

    `key_pem` is plain PKCS#8 without extra headers; it never touches a disk. Raises BadInput if the three do not fit.
    No CA names are sent with the request for a certificate (`load_verify_locations` does not set that list): a Go
    client sends its certificate only if the list is empty or names an issuer of its chain byte for byte (§12.18).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols([ALPN])
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    # Go takes every certificate of its pool for an anchor, self-signed or not (§12.5).
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cadata=normalize_pems(root_pem).decode("ascii"))  # comments may be in any letters
        load_chain(context, certificate_pem, key_pem)
    except (ssl.SSLError, UnicodeDecodeError, ValueError) as error:
        raise BadInput(
            f"certificate, key and root of this node cannot be served: {error}",
            remedy="restore the certificates directory from a backup, or leave and join again",
        ) from error
    return context


def load_chain(context: ssl.SSLContext, certificate_pem: bytes, key_pem: bytes) -> None:
    """`load_cert_chain` reads files only: give it one in memory, so that the plain key is never on a disk."""
    fd = os.memfd_create("chain", os.MFD_CLOEXEC)
    with os.fdopen(fd, "wb") as chain:
        chain.write(certificate_pem.rstrip() + b"\n" + key_pem)
        chain.flush()
        context.load_cert_chain(f"/proc/self/fd/{fd}")
