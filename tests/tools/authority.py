"""A swarm's certificates for tests: a root, and credentials of any node, role, organization and age under it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import grpc
import grpc.aio

from swarm.identity import new_id
from swarm.paths import Paths
from swarm.pki.certificate import MANAGER_OU, WORKER_OU
from swarm.pki.chain import validate_chain
from swarm.pki.credentials import Credentials, make_credentials
from swarm.pki.keyfile import KeyFile
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA

HOUR = 3600.0


@dataclass
class Authority:
    """Issues what a test asks for, true or not."""

    cluster_id: str = field(default_factory=new_id)
    root: RootCA = field(default_factory=lambda: RootCA.create(now=time.time() - 10_000 * HOUR))
    """Older than anything a test asks for."""

    def issue(
        self,
        role: str = "worker",
        *,
        node_id: str = "",
        organization: str = "",
        issued_at: float | None = None,
        expiry: float = 90 * 24 * HOUR,
    ) -> Credentials:
        """Credentials of a node; `issued_at` in the past (unix seconds) makes them old."""
        key, csr = new_request()
        unit = MANAGER_OU if role == "manager" else WORKER_OU
        now = time.time() if issued_at is None else issued_at
        chain = self.root.sign(csr, node_id or new_id(), unit, organization or self.cluster_id, expiry, now=now)
        valid = validate_chain(self.root.pool, chain, allow_expired=True)
        return make_credentials(valid, chain, key, self.root.certs)

    def bootstrap(self, paths: Paths, **toml: str) -> Credentials:
        """The files of the first manager of a new swarm, as `init` and the renewer leave them."""
        credentials = self.issue("manager")
        paths.certificates.mkdir(parents=True, mode=0o700)
        paths.runtime.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = {"listen_addr": "127.0.0.1:0", **toml}
        paths.node_toml.write_text("".join(f'{k} = "{v}"\n' for k, v in settings.items()))
        paths.bootstrap_root_key.write_bytes(self.root.key_pem)
        paths.root_cert.write_bytes(self.root.certs)
        KeyFile.of(paths).write(credentials.certificate_pem, credentials.key_pem)
        return credentials


def open_channel(target: str, credentials: Credentials | None, root_pem: bytes) -> grpc.aio.Channel:
    """A channel as peers make them, with gRPC's own patience: the machine that runs tests may be busy."""
    key, chain = (credentials.key_pem, credentials.certificate_pem) if credentials else (None, None)
    options = [
        ("grpc.ssl_target_name_override", "swarm-manager"),
        ("grpc.max_receive_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    ]
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(root_pem, key, chain), options=options)
