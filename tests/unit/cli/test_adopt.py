"""`adopt`: whose identity it takes over, whose it does not and why, and that the directory stays as it was."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from procs.cli.__main__ import run
from procs.cli.exits import Exit
from procs.cli.predecessor import taken_over
from swarm.identity import FIPS_PREFIX
from swarm.nodeconfig import load_node_config
from swarm.paths import Paths
from swarm.pki.certificate import WORKER_OU
from swarm.pki.credentials import load_credentials
from swarm.pki.held import Credentials
from swarm.pki.keyfile import Kek, KeyFile
from swarm.pki.request import new_request
from swarm.remotes import Peer, load_peers
from tests.tools.authority import HOUR, Authority

MANAGERS = [{"node_id": "m1", "addr": "192.0.2.1:2377"}, {"node_id": "m2", "addr": "192.0.2.2:2377"}]
HOLD = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); sys.stdin.read()"


class Docker:
    """A data root with a swarm directory as a Docker worker leaves it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.swarm = root / "swarm"
        self.paths = Paths(self.swarm, self.swarm)
        self.authority = Authority()
        (root / "volumes").mkdir(parents=True)
        (root / "volumes/metadata.db").write_bytes(b"bbolt")
        (self.swarm / "worker").mkdir(parents=True)
        (self.swarm / "worker/tasks.db").write_bytes(b"bbolt")
        (self.swarm / "docker-state.json").write_text("{}")
        self.paths.state_json.write_text(json.dumps(MANAGERS))
        self.write(self.authority.issue("worker", node_id="thenode"))

    def write(self, held: Credentials, kek: Kek | None = None) -> None:
        KeyFile.of(self.paths).write(held.certificate_pem, held.key_pem, kek=kek)
        self.paths.root_cert.write_bytes(held.root_pem)
        (self.paths.certificates / ".lock").unlink()

    def content(self) -> dict[str, tuple[int, int, bytes]]:
        """Everything below the data root, with modes and times."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        return found


@pytest.fixture
def docker(short_dir: Path) -> Docker:
    return Docker(short_dir / "docker")


@pytest.fixture
def paths(short_dir: Path) -> Paths:
    return Paths(short_dir / "state", short_dir / "run")


def adopt(paths: Paths, directory: Path, *options: str) -> int:
    places = ["--state-dir", str(paths.state), "--runtime-dir", str(paths.runtime)]
    return run([*places, "adopt", "--swarm-dir", str(directory), "--no-start", *options])


@contextmanager
def held_by_a_process(path: Path) -> Iterator[int]:
    """Another process's lock on `path`; its pid."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        owner.stdout.readline()
        yield owner.pid
        owner.stdin.close()


def test_a_workers_identity_is_copied_and_its_directory_left_as_it_was(
    docker: Docker, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    before = docker.content()
    assert adopt(paths, docker.swarm, "--hostname", "h", "--label", "a=b") == Exit.DONE
    assert docker.content() == before
    there = KeyFile.of(docker.paths).read_at_rest()
    here = load_credentials(paths)
    assert (here.node_id, here.cluster_id, here.role) == ("thenode", docker.authority.cluster_id, "worker")
    assert (here.certificate_pem, here.key_pem) == (there.certificate_pem, there.key_pem)
    assert paths.root_cert.read_bytes() == docker.paths.root_cert.read_bytes()
    assert load_peers(paths.state_json) == [Peer(**manager) for manager in MANAGERS]
    config = load_node_config(paths.node_toml)
    assert (config.hostname, config.labels, config.join_addr) == ("h", {"a": "b"}, "")
    assert not paths.adopting.exists()
    assert paths.node_key.stat().st_mode & 0o777 == 0o600
    out = capsys.readouterr().out
    assert f"mv {docker.swarm} {docker.swarm}.adopted" in out
    assert "`docker swarm leave` is not the way" in out
    assert "expired" not in out

    assert adopt(paths, docker.swarm) == Exit.REFUSED
    assert "holds a node already" in capsys.readouterr().err


def test_another_manager_is_asked_where_those_known_are_gone(docker: Docker, paths: Paths) -> None:
    docker.paths.state_json.write_text("not JSON")
    assert adopt(paths, docker.swarm, "--join-addr", "192.0.2.9") == Exit.DONE
    assert load_node_config(paths.node_toml).join_addr == "192.0.2.9:2377"
    assert not paths.state_json.exists()


def test_an_expired_certificate_is_taken_with_a_word(
    docker: Docker, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.write(docker.authority.issue("worker", issued_at=time.time() - 200 * 24 * HOUR))
    assert adopt(paths, docker.swarm) == Exit.DONE
    assert "Its certificate expired on 20" in capsys.readouterr().out


def test_a_pair_that_a_killed_owner_left_half_written_is_read_as_the_owner_would(docker: Docker, paths: Paths) -> None:
    newer = docker.authority.issue("worker", node_id="thenode")
    old = docker.paths.node_cert.read_bytes()
    docker.write(newer)
    os.rename(docker.paths.node_cert, KeyFile.of(docker.paths).first_phase)
    docker.paths.node_cert.write_bytes(old)
    assert adopt(paths, docker.swarm) == Exit.DONE
    assert load_credentials(paths).fingerprint == newer.fingerprint


def test_a_fips_swarms_worker_is_taken_by_a_fips_node(docker: Docker, paths: Paths) -> None:
    docker.write(docker.authority.issue("worker", organization=f"{FIPS_PREFIX}x"))
    assert adopt(paths, docker.swarm, "--fips") == Exit.DONE
    assert load_node_config(paths.node_toml).fips


def a_manager(docker: Docker) -> None:
    docker.write(docker.authority.issue("manager", node_id="m9"))


def a_locked_manager(docker: Docker) -> None:
    docker.write(docker.authority.issue("manager"), Kek(b"secret", 1))


def an_encrypted_key_beside_a_workers_certificate(docker: Docker) -> None:
    certificate = docker.paths.node_cert.read_bytes()
    a_locked_manager(docker)
    docker.paths.node_cert.write_bytes(certificate)


def another_key(docker: Docker) -> None:
    certificate = docker.paths.node_cert.read_bytes()
    docker.write(docker.authority.issue("worker"))
    docker.paths.node_cert.write_bytes(certificate)


def a_broken_key(docker: Docker) -> None:
    docker.paths.node_key.write_bytes(b"nonsense")


def a_broken_certificate(docker: Docker) -> None:
    docker.paths.node_cert.write_bytes(b"nonsense")


def another_root(docker: Docker) -> None:
    docker.paths.root_cert.write_bytes(Authority().root.certs)


def a_broken_root(docker: Docker) -> None:
    docker.paths.root_cert.write_bytes(b"nonsense")


def no_key(docker: Docker) -> None:
    docker.paths.node_key.unlink()


def no_certificates(docker: Docker) -> None:
    docker.paths.certificates.rename(docker.root / "elsewhere")


def no_state_json(docker: Docker) -> None:
    docker.paths.state_json.unlink()


def a_broken_state_json(docker: Docker) -> None:
    docker.paths.state_json.write_text('[{"node_id":')


def no_managers(docker: Docker) -> None:
    docker.paths.state_json.write_text('[{"node_id":"m1"}]')


def fips(docker: Docker) -> None:
    docker.write(docker.authority.issue("worker", organization=f"{FIPS_PREFIX}x"))


def not_valid_yet(docker: Docker) -> None:
    key, csr = new_request()
    authority = docker.authority
    chain = authority.root.sign(csr, "n", WORKER_OU, authority.cluster_id, 2 * HOUR, now=time.time() + 10 * HOUR)
    KeyFile.of(docker.paths).write(chain, key)


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (a_manager, Exit.REFUSED, "is a manager's (node m9)|docker node demote m9"),
        (a_locked_manager, Exit.REFUSED, "is a manager's|demote"),
        (an_encrypted_key_beside_a_workers_certificate, Exit.REFUSED, "is encrypted|docker swarm unlock"),
        (another_key, Exit.FAILED, "does not hold a certificate for the key|restore"),
        (a_broken_key, Exit.FAILED, "swarm-node.key: invalid PEM|restore"),
        (a_broken_certificate, Exit.FAILED, "swarm-node.crt|restore"),
        (another_root, Exit.FAILED, "swarm-node.crt|restore"),
        (a_broken_root, Exit.FAILED, "swarm-root-ca.crt: invalid root|restore"),
        (no_key, Exit.REFUSED, "holds no node of a swarm: there is no certificates/swarm-node.key|docker info"),
        (no_certificates, Exit.REFUSED, "there is no certificates/swarm-root-ca.crt|docker info"),
        (no_state_json, Exit.REFUSED, "state.json names no manager|--join-addr"),
        (a_broken_state_json, Exit.FAILED, "state.json: not JSON|--join-addr"),
        (no_managers, Exit.REFUSED, "state.json names no manager|--join-addr"),
        (fips, Exit.REFUSED, "cluster requires FIPS|--fips"),
        (not_valid_yet, Exit.FAILED, "not valid|clock"),
    ],
)
def test_what_cannot_be_continued_is_refused_in_words_and_nothing_is_touched(
    docker: Docker,
    paths: Paths,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Docker], None],
    code: Exit,
    words: str,
) -> None:
    spoil(docker)
    before = docker.content()
    assert adopt(paths, docker.swarm) == code
    error = capsys.readouterr().err
    assert all(word in error for word in words.split("|")), error
    assert docker.content() == before
    assert not paths.state.exists()
    assert not paths.runtime.exists()


@pytest.mark.parametrize("held", ["swarm/worker/tasks.db", "volumes/metadata.db", "swarm/.lock.agent"])
def test_while_its_owner_runs_it_is_refused_naming_the_process(
    docker: Docker, paths: Paths, capsys: pytest.CaptureFixture[str], held: str
) -> None:
    (docker.root / held).touch()
    with held_by_a_process(docker.root / held) as pid:
        assert adopt(paths, docker.swarm) == Exit.REFUSED
        error = capsys.readouterr().err
        assert f"{docker.root / held} is in use by process {pid} (" in error
        assert "docker swarm leave" in error
        assert not paths.state.exists()
    assert adopt(paths, docker.swarm) == Exit.DONE


def test_an_owner_that_starts_meanwhile_waits(docker: Docker) -> None:
    with (
        taken_over(docker.swarm, fips=False, need_managers=True),
        (docker.swarm / "worker/tasks.db").open("rb") as owners,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(owners, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (docker.swarm / "worker/tasks.db").open("rb") as owners:
        fcntl.flock(owners, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_copy_of_a_directory_on_which_its_owner_runs_is_refused_naming_the_process(
    docker: Docker, paths: Paths, short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(docker.swarm, short_dir / "copy")
    with held_by_a_process(docker.swarm / "worker/tasks.db") as pid:
        assert adopt(paths, short_dir / "copy") == Exit.REFUSED
        error = capsys.readouterr().err
        assert f"process {pid} (" in error
        assert f"runs as this node (thenode), on {docker.swarm};" in error
    assert not paths.state.exists()


def test_a_directory_that_is_not_it_is_refused_with_the_one_meant(
    docker: Docker, paths: Paths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adopt(paths, docker.root) == Exit.REFUSED
    assert f"give --swarm-dir {docker.swarm}" in capsys.readouterr().err
    assert adopt(paths, docker.root / "absent") == Exit.USAGE
    assert f"there is no directory {docker.root / 'absent'}" in capsys.readouterr().err
    inside = Paths(docker.swarm / "state", paths.runtime)
    assert adopt(inside, docker.swarm) == Exit.REFUSED
    assert "which is to stay as it is" in capsys.readouterr().err
    operators = Paths(paths.state, paths.runtime)
    operators.certificates.mkdir(parents=True)
    operators.root_key.write_bytes(b"an operator's")
    assert adopt(operators, docker.swarm) == Exit.REFUSED
    assert f"{operators.root_key} is there already" in capsys.readouterr().err


def test_what_a_killed_adoption_left_is_in_nobodys_way(docker: Docker, paths: Paths) -> None:
    other = Docker(paths.state.parent / "other")
    assert adopt(paths, other.swarm) == Exit.DONE
    os.rename(paths.node_toml, paths.adopting)  # as if it had been killed right before its end
    (paths.state / ".tmp-node.tomlx").touch()
    assert adopt(paths, docker.swarm) == Exit.DONE
    assert load_credentials(paths).cluster_id == docker.authority.cluster_id

    os.rename(paths.node_toml, paths.adopting)
    places = ["--state-dir", str(paths.state), "--runtime-dir", str(paths.runtime)]
    assert run([*places, "init", "--no-start", "--listen-addr", "127.0.0.1:0"]) == Exit.DONE
    left = {path.name for path in paths.state.iterdir()}
    assert left == {"node.toml", "logs", ".lock.command"}
