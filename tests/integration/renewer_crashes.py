"""Kill the writers of `certificates/` with SIGKILL before and after every file operation, and look at what is left.

Run by test_renewer_kill.py in a process of its own (it forks once per step) with `founding`, `changing` or `joining` as
argument; prints one JSON object: scenario to number of steps. Any broken promise ends it with a traceback.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from procs.renewer import files
from swarm.clock import SystemClock
from swarm.joining import Joining, load_joining, save_joining
from swarm.nodeconfig import NodeConfig, save_node_config
from swarm.paths import Paths
from swarm.pki.chain import validate_chain
from swarm.pki.credentials import Credentials, load_credentials, make_credentials
from swarm.pki.keyfile import Kek, KeyFile
from swarm.pki.request import new_request
from swarm.pki.rootca import RootCA

HEADERS = {"raft-dek": "b25l"}
NEVER = 1 << 30


class Steps:
    """Counts file operations; SIGKILLs this process at the chosen one."""

    def __init__(self) -> None:
        self.count = 0
        self.fatal = NEVER

    def tick(self) -> None:
        self.count += 1
        if self.count >= self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            result = function(*args, **kwargs)
            self.tick()
            return result

        return wrapped


class HalfWriter:
    """A file whose writes can be cut in the middle."""

    def __init__(self, out: Any, steps: Steps) -> None:
        self._out, self._steps = out, steps

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._out.close()

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        self._out.write(data[:half])
        self._out.flush()
        self._steps.tick()
        self._out.write(data[half:])
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


STEPS = Steps()


def instrument() -> None:
    real_fdopen = os.fdopen
    for name in ("rename", "unlink", "fchmod", "mkdir"):
        setattr(os, name, STEPS.around(getattr(os, name)))
    os.fsync = STEPS.around(lambda _fd: None)  # SIGKILL loses nothing of the page cache: spare the disk
    tempfile.mkstemp = STEPS.around(tempfile.mkstemp)
    os.fdopen = lambda fd, mode: HalfWriter(real_fdopen(fd, mode), STEPS)  # type: ignore[assignment,misc]


def in_child(fatal: int, work: Callable[[], None]) -> tuple[bool, int]:
    """Run `work` in a fork that dies at operation `fatal`: whether it lived, and how many operations it did."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        STEPS.count, STEPS.fatal = 0, fatal
        try:
            work()
        except BaseException:  # noqa: BLE001  the child's only way to speak is its exit code and stderr
            sys.excepthook(*sys.exc_info())
            os._exit(3)
        os.write(writer, str(STEPS.count).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as source:
        told = source.read()
    _, status = os.waitpid(pid, 0)
    assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the writer failed by itself"
    return os.WIFEXITED(status), int(told or 0)


def every_step(base: Paths, work: Callable[[Paths], None], look: Callable[[Paths], None]) -> int:
    """Do `work` on copies of `base`, killed at step 1, 2, …, until it survives; `look` at each wreck."""
    step = 0
    while True:
        step += 1
        with tempfile.TemporaryDirectory() as directory:
            state = Path(directory) / "state"
            shutil.copytree(base.state, state)
            paths = Paths(state, Path(directory))
            lived, _ = in_child(step, lambda paths=paths: work(paths))  # type: ignore[misc]
            STEPS.fatal = NEVER
            look(paths)
            if lived:
                return step - 1


def begin(paths: Paths) -> None:
    files.begin(paths, SystemClock())


def check_founded(paths: Paths) -> Credentials:
    """The next start converges: a loadable pair, a root key that fits, no litter, and a third start changes nothing."""
    begin(paths)
    held = load_credentials(paths)
    root = RootCA.from_pem(held.root_pem, paths.bootstrap_root_key.read_bytes(), held.root_pem)
    assert root.can_sign
    assert held.role == "manager"
    assert not list(paths.certificates.glob(".tmp-*"))
    assert not KeyFile.of(paths).first_phase.exists()
    begin(paths)
    assert load_credentials(paths) == held
    return held


def founded(directory: Path, name: str) -> Paths:
    paths = Paths(directory / name, directory)
    paths.state.mkdir()
    save_node_config(paths.node_toml, NodeConfig())
    begin(paths)
    KeyFile.of(paths).view_and_update_headers(lambda _: HEADERS)
    return paths


def issue(paths: Paths, role: str) -> tuple[bytes, bytes]:
    held = load_credentials(paths)
    root = RootCA.from_pem(held.root_pem, paths.bootstrap_root_key.read_bytes(), held.root_pem)
    key, csr = new_request()
    return root.sign(csr, held.node_id, f"swarm-{role}", held.cluster_id, 0), key


def founding(directory: Path) -> dict[str, int]:
    """Every way of making a new swarm."""
    told: dict[str, int] = {}
    empty = Paths(directory / "empty", directory)
    empty.state.mkdir()
    save_node_config(empty.node_toml, NodeConfig())
    told["bootstrap"] = every_step(empty, begin, lambda paths: check_founded(paths) and None)

    rootless = founded(directory, "rootless")
    rootless.root_cert.unlink()
    told["bootstrap over an old pair"] = every_step(rootless, begin, lambda paths: check_founded(paths) and None)

    operators = Paths(directory / "operators", directory)
    operators.certificates.mkdir(parents=True)
    save_node_config(operators.node_toml, NodeConfig())
    own = RootCA.create("operator")
    operators.root_cert.write_bytes(own.certs)
    operators.root_key.write_bytes(own.key_pem)

    def kept(paths: Paths) -> None:
        assert check_founded(paths).root_pem == own.certs
        assert paths.root_key.read_bytes() == own.key_pem

    told["bootstrap with an operator's root"] = every_step(operators, begin, kept)

    return told


def changing(directory: Path) -> dict[str, int]:
    """Every change of a running node's files."""
    told: dict[str, int] = {}
    running = founded(directory, "running")
    before = load_credentials(running)
    for role in ("manager", "worker"):
        certificate, key = issue(running, role)

        def replace(paths: Paths, certificate: bytes = certificate, key: bytes = key) -> None:
            KeyFile.of(paths).write(certificate, key)

        def either(paths: Paths, certificate: bytes = certificate, key: bytes = key, role: str = role) -> None:
            old, new = (before.certificate_pem, before.key_pem), (certificate, key)
            reader = KeyFile.of(paths).read()  # as the agent reads, before anybody repairs
            assert (reader.certificate_pem, reader.key_pem) in (old, new)
            is_new = reader.key_pem == key
            assert reader.headers == ({} if is_new and role == "worker" else HEADERS)
            begin(paths)
            after = load_credentials(paths)
            assert (after.certificate_pem, after.key_pem) == (new if is_new else old)
            assert not KeyFile.of(paths).first_phase.exists()
            assert not list(paths.certificates.glob(".tmp-*"))

        told[f"replacement by a {role} certificate"] = every_step(running, replace, either)

    def add_header(paths: Paths) -> None:
        KeyFile.of(paths).view_and_update_headers(lambda present: {**present, "raft-dek-pending": "dHdv"})

    def whole(paths: Paths) -> None:
        read = KeyFile.of(paths).read()
        assert (read.certificate_pem, read.key_pem) == (before.certificate_pem, before.key_pem)
        assert read.headers in (HEADERS, {**HEADERS, "raft-dek-pending": "dHdv"})

    told["headers"] = every_step(running, add_header, whole)

    def lock(paths: Paths) -> None:
        KeyFile.of(paths).rotate(lambda _kek, _headers: (Kek(b"kek", 2), {"raft-dek": "sealed"}))

    def one_of_both(paths: Paths) -> None:
        read = KeyFile.of(paths).read(b"kek")
        assert read.key_pem == before.key_pem
        assert (read.kek, read.headers) in (
            (Kek(), HEADERS),
            (Kek(b"kek", 2), {"raft-dek": "sealed"}),
        )

    told["unlock key"] = every_step(running, lock, one_of_both)

    bundle = before.root_pem + RootCA.create().certs

    def add_root(paths: Paths) -> None:
        files.install_root(paths, load_credentials(paths), bundle, SystemClock())

    def old_or_new_root(paths: Paths) -> None:
        assert load_credentials(paths).root_pem in (before.root_pem, bundle)

    told["root"] = every_step(running, add_root, old_or_new_root)
    return told


def joining(directory: Path) -> dict[str, int]:
    """Every write of a join: whenever it is killed, the next start is the same node, or goes on as it."""
    told: dict[str, int] = {}
    swarm = founded(directory, "swarm")
    held = load_credentials(swarm)
    root = RootCA.from_pem(held.root_pem, swarm.bootstrap_root_key.read_bytes(), held.root_pem)
    key, csr = new_request()
    certificate = root.sign(csr, "node2", "swarm-worker", held.cluster_id, 0)
    joined = make_credentials(validate_chain(root.pool, certificate), certificate, key, held.root_pem)
    record = Joining(key.decode(), csr.decode(), root.digest, "node2")

    joiner = Paths(directory / "joiner", directory)
    joiner.certificates.mkdir(parents=True)
    save_node_config(joiner.node_toml, NodeConfig(join_addr="192.0.2.1:2377"))
    joiner.join_token.write_text("SWMTKN")
    joiner.root_cert.write_bytes(held.root_pem)
    save_joining(joiner.joining, replace(record, node_id=""))

    def answered(paths: Paths) -> None:
        save_joining(paths.joining, record)

    def before_or_after(paths: Paths) -> None:
        assert load_joining(paths.joining) in (record, replace(record, node_id=""))

    told["the answer of the swarm"] = every_step(joiner, answered, before_or_after)
    save_joining(joiner.joining, record)

    def install(paths: Paths) -> None:
        files.install_first(paths, joined, Kek())

    def same_node(paths: Paths) -> None:
        try:
            begin(paths)
        except files.NotJoined:
            assert load_joining(paths.joining) == record
            assert paths.join_token.exists()
            install(paths)
            begin(paths)
        after = load_credentials(paths)
        assert (after.node_id, after.key_pem) == ("node2", key)
        assert not paths.joining.exists()
        assert not paths.join_token.exists()
        assert not list(paths.certificates.glob(".tmp-*"))

    told["the first certificate"] = every_step(joiner, install, same_node)
    return told


def main() -> None:
    instrument()
    with tempfile.TemporaryDirectory() as directory:
        scenarios = {"founding": founding, "changing": changing, "joining": joining}[sys.argv[1]]
        json.dump(scenarios(Path(directory)), sys.stdout)


if __name__ == "__main__":
    main()
