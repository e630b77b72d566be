"""The short way to the node's files: only those that the renewer spoke of, as a pair, and without cryptography."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from swarm.paths import Paths
from swarm.pki.credentials import Credentials
from swarm.pki.held import Files, read_published
from swarm.pki.keyfile import Kek, KeyFile
from tests.tools.authority import Authority


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(state=tmp_path / "state", runtime=tmp_path / "run")


def read(paths: Paths, held: Credentials) -> Files | None:
    return read_published(paths, held.fingerprint, held.root_digest)


def test_the_published_files_are_the_credentials_of_the_long_way(paths: Paths) -> None:
    held = Authority().bootstrap(paths)
    assert read(paths, held) == Files(held.certificate_pem, held.key_pem, held.root_pem)


def test_other_files_than_those_published_are_not_taken(paths: Paths) -> None:
    authority = Authority()
    held = authority.bootstrap(paths)
    newer = authority.issue("manager")
    KeyFile.of(paths).write(newer.certificate_pem, newer.key_pem)
    assert read(paths, held) is None
    assert read(paths, newer) is not None
    paths.root_cert.write_bytes(held.root_pem + b"\n")
    assert read(paths, newer) is None


def test_an_encrypted_key_is_left_to_the_long_way(paths: Paths) -> None:
    held = Authority().bootstrap(paths)
    KeyFile.of(paths).write(held.certificate_pem, held.key_pem, kek=Kek(b"unlock", 1))
    assert read(paths, held) is None


def test_a_write_that_was_cut_off_is_left_to_the_long_way(paths: Paths) -> None:
    held = Authority().bootstrap(paths)
    KeyFile.of(paths).first_phase.write_bytes(held.certificate_pem)
    assert read(paths, held) is None


def test_the_agent_starts_without_cryptography() -> None:
    code = "import sys, procs.agent.__main__; print(any(name.startswith('cryptography') for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "False\n"
