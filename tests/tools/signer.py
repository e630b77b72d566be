"""A signer outside the swarm: a real HTTPS server that speaks cfssl's protocol and wants a manager's certificate."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from procs.manager.gateway.tls import load_chain
from swarm.pki import privatekey
from swarm.pki.certificate import MANAGER_OU
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA

NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME."""


@dataclass
class Signer:
    """What the server does with a request; tests change it while it runs, and stop and start it."""

    root: RootCA
    takes: bytes = b""
    """Roots of the callers beside its own, PEM."""
    takes_expired: bool = False
    answer: Callable[[dict[str, Any]], tuple[int, bytes]] | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)
    port: int = 0
    _server: ThreadingHTTPServer | None = None
    _thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}/sign"

    def start(self) -> None:
        """On the port of before, if there was one."""
        self._server = _server(self)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def stop(self) -> None:
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = None

    def sign(self, request: dict[str, Any]) -> tuple[int, bytes]:
        """Status and body for the body of a request."""
        self.asked.append(request)
        if self.answer is not None:
            return self.answer(request)
        csr = request["certificate_request"].encode()
        if request["profile"] == "CA":
            made = cross_signed(self.root, csr)
        else:
            names = request["subject"]["names"][0]
            made = self.root.sign(csr, request["subject"]["CN"], names["OU"], names["O"], 7200)
        return 200, json.dumps({"success": True, "result": {"certificate": made.decode()}, "errors": []}).encode()


@contextmanager
def serving(root: RootCA, takes: bytes = b"") -> Iterator[Signer]:
    """One that runs; stopped with the block."""
    signer = Signer(root, takes)
    signer.start()
    try:
        yield signer
    finally:
        signer.stop()


def cross_signed(root: RootCA, csr_pem: bytes) -> bytes:
    """What cfssl makes of a CSR with its profile for CAs: the subject, the key, and that it is a CA."""
    csr, issuer = x509.load_pem_x509_csr(csr_pem), root.pool[0].parsed
    assert csr.is_signature_valid
    assert csr.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    key = privatekey.load_pem(root.key_pem)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = time.time()
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateBuilder()
        .subject_name(csr.subject)
        .issuer_name(issuer.subject)
        .public_key(csr.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(now - 300, UTC))
        .not_valid_after(datetime.fromtimestamp(now + 5 * 365 * 86400, UTC))
        .add_extension(usage, critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(csr.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _server(signer: Signer) -> ThreadingHTTPServer:
    key, csr = new_request()
    chain = signer.root.sign(csr, "localhost", MANAGER_OU, "signer", 7200)  # its name is among the DNS names
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_verify_locations(cadata=(signer.root.certs + signer.takes).decode())
    context.verify_mode = ssl.CERT_REQUIRED
    if signer.takes_expired:
        context.verify_flags = ssl.VerifyFlags(context.verify_flags | NO_CHECK_TIME)
    load_chain(context, chain, key)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            connection = self.connection
            assert isinstance(connection, ssl.SSLSocket)
            peer: Any = connection.getpeercert()
            signer.callers.append(dict(pair[0] for pair in peer["subject"])["commonName"])
            code, body = signer.sign(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def get_request(self) -> tuple[Any, Any]:
            sock, address = super().get_request()
            # the handshake comes with the first read, in the handler's thread, which closes the socket if it fails
            return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, *args: object) -> None:
            pass  # a probe hangs up after the handshake

    return Server(("localhost", signer.port), Handler)
