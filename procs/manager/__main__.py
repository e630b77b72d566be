"""manager: serves and leads the swarm.

Owns    manager/ (ENGINE, store.db), the remote API's TCP port, control.sock, gateway.sock; the headers of the node key
        file (the store's data key).
Reads   node.toml, certificates/, certificates/.bootstrap-ca.key until the store holds that key.
Hears   certificate.  Says  manager.
Never   writes a certificate, starts another process, or answers a call that the guard has not authorized.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence

from procs.manager.manager import run_manager
from swarm.process_async import run_async

DESCRIPTION = "Serve and lead the swarm: gateway, certificate authority, dispatcher, control API, orchestration, store."
DESCRIPTORS = 65_536
"""Three per connection: the peer's, and both ends of the inner one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the process; returns its exit code."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return run_async("manager", DESCRIPTION, run_manager, argv)


if __name__ == "__main__":
    sys.exit(main())
