"""What the renewer's brain is told, and what it asks to have done. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field

from ipc.topics import Certificate, ManagerAddress, NodeChanges, Role
from swarm.joining import Trouble


@dataclass(frozen=True)
class Moment:
    """One instant on both clocks, in seconds: the wall clock for dates, the monotonic one for waiting."""

    wall: float
    monotonic: float


@dataclass(frozen=True)
class Held:
    """The certificate in use, as far as the brain needs it."""

    node_id: str
    cluster_id: str
    role: str
    not_before: int
    not_after: int
    fingerprint: str
    root_digest: str
    issuer_subject: bytes = b""
    issuer_public_key: bytes = b""


# -- events ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """A usable (perhaps expired) certificate lies on disk."""

    held: Held
    bootstrap_key: bool = False
    """Whether `.bootstrap-ca.key` lies there too."""


@dataclass(frozen=True)
class Unusable:
    """Nothing usable lies on disk, and only the operator can change that."""

    state: str
    """`locked` or `failed`."""
    why: str


@dataclass(frozen=True)
class MustJoin:
    """There is no certificate, and node.toml names a manager to join at."""


@dataclass(frozen=True)
class Joined:
    """The swarm issued the first certificate, and it is on disk."""

    held: Held


@dataclass(frozen=True)
class JoinRefused:
    """One try to join did not work."""

    why: str
    trouble: Trouble = Trouble.OTHER
    hopeless: bool = False
    """Whether only the operator can change it, whatever the trouble."""


@dataclass(frozen=True)
class RoleSaid:
    """Topic `role`."""

    role: Role
    cause: str = ""
    """Cause id of its envelope."""


@dataclass(frozen=True)
class NodeChanged:
    """Topic `node.changes`."""

    changes: NodeChanges
    digest: str
    """SHA-256 of its root bundle, hex; empty if it carries none."""


@dataclass(frozen=True)
class ManagerSaid:
    """Topic `manager`: whether the local manager answers."""

    ready: bool
    root_digest_held: str = ""
    epoch: int = 0
    """Which run of the manager says it."""
    replace: str = ""
    """Fingerprint of a certificate whose key lay on the disk in the clear; empty: none."""


@dataclass(frozen=True)
class RemotesSaid:
    """Topic `remotes`."""

    managers: tuple[ManagerAddress, ...]


@dataclass(frozen=True)
class LookAgain:
    """What lies on disk may be usable by now."""


@dataclass(frozen=True)
class Due:
    """The time asked for with `WakeAt` has come."""


@dataclass(frozen=True)
class Obtained:
    """The CA issued a certificate, it verifies, and it is not installed yet."""

    role: str


@dataclass(frozen=True)
class RequestFailed:
    """No certificate came."""

    why: str
    trouble: Trouble = Trouble.OTHER


@dataclass(frozen=True)
class Installed:
    """The obtained certificate is on disk."""

    held: Held


@dataclass(frozen=True)
class InstallFailed:
    """It could not be written; the old pair is still in place."""

    why: str


@dataclass(frozen=True)
class RootInstalled:
    """The new root bundle is on disk."""

    held: Held


@dataclass(frozen=True)
class RootRefused:
    """The new root bundle was not installed: the present certificate does not verify under it, or it is no bundle."""

    digest: str
    why: str


Event = (
    Loaded
    | Unusable
    | MustJoin
    | Joined
    | JoinRefused
    | RoleSaid
    | NodeChanged
    | ManagerSaid
    | RemotesSaid
    | LookAgain
    | Due
    | Obtained
    | RequestFailed
    | Installed
    | InstallFailed
    | RootInstalled
    | RootRefused
)


# -- effects -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Publish:
    """Say this on topic `certificate`."""

    certificate: Certificate


@dataclass(frozen=True)
class Begin:
    """Look at what lies on disk; answer with Loaded, MustJoin or Unusable."""


@dataclass(frozen=True)
class Join:
    """Try to join; answer with Joined or JoinRefused."""


@dataclass(frozen=True)
class Request:
    """Ask a CA for a certificate with a fresh key; answer with Obtained or RequestFailed."""

    local: bool
    """Whether to begin with this node's own manager."""
    why: str
    cause: str = ""
    """Cause id of what asked for it; empty: the certificate's own age."""


@dataclass(frozen=True)
class Install:
    """Write what was obtained; answer with Installed or InstallFailed."""


@dataclass(frozen=True)
class InstallRoot:
    """Check and write a root bundle; answer with RootInstalled or RootRefused."""

    bundle: bytes = field(repr=False)
    digest: str


@dataclass(frozen=True)
class RemoveBootstrapKey:
    """The store holds the root's key: remove the file."""


@dataclass(frozen=True)
class Prepare:
    """A request may come soon: load what it needs."""


@dataclass(frozen=True)
class WakeAt:
    """Send Due at this monotonic time; replaces an earlier one."""

    monotonic: float


Effect = Publish | Begin | Join | Request | Install | InstallRoot | RemoveBootstrapKey | Prepare | WakeAt
