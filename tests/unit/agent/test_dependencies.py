"""Secrets and configs: who gets which, as which file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from procs.agent.dependencies import Dependencies, File, FileSet, Missing, needs_files, refused_targets, withdraw
from swarm.api import dispatcher_pb2, objects_pb2, specs_pb2, types_pb2
from swarm.errors import BadInput

Message = dispatcher_pb2.AssignmentsMessage
Change = dispatcher_pb2.AssignmentChange


def secret(secret_id: str, data: bytes) -> dispatcher_pb2.Assignment:
    return dispatcher_pb2.Assignment(secret=objects_pb2.Secret(id=secret_id, spec=specs_pb2.SecretSpec(data=data)))


def config(config_id: str, data: bytes) -> dispatcher_pb2.Assignment:
    return dispatcher_pb2.Assignment(config=objects_pb2.Config(id=config_id, spec=specs_pb2.ConfigSpec(data=data)))


def message(*assignments: dispatcher_pb2.Assignment, complete: bool = False, remove: bool = False) -> Message:
    made = Message(type=Message.COMPLETE if complete else Message.INCREMENTAL)
    for assignment in assignments:
        made.changes.add(assignment=assignment, action=Change.REMOVE if remove else Change.UPDATE)
    return made


def target(name: str = "f", *, mode: int = 0o444, uid: str = "0", gid: str = "0") -> types_pb2.FileTarget:
    return types_pb2.FileTarget(name=name, mode=mode, uid=uid, gid=gid)


def task(*, user: str = "", **references: types_pb2.FileTarget) -> objects_pb2.Task:
    """`s1=target` names secret s1, `c1=…` config c1."""
    made = objects_pb2.Task(id="t")
    made.spec.container.user = user
    for name, file in references.items():
        if name.startswith("s"):
            made.spec.container.secrets.add(secret_id=name, secret_name=name, file=file)
        else:
            made.spec.container.configs.add(config_id=name, config_name=name, file=file)
    return made


def test_a_task_gets_what_it_names_and_nothing_else() -> None:
    held = Dependencies()
    held.apply(message(secret("s1", b"one"), secret("s2", b"two"), config("c1", b"conf"), complete=True))
    files = held.files(task(s1=target("pw", mode=0o400), c1=target("app/x.conf")))
    assert [(f.name, f.data, f.mode) for f in files] == [
        ("secrets/pw", b"one", 0o400),
        ("configs/app/x.conf", b"conf", 0o444),
    ]
    assert not needs_files(task())
    assert held.files(task()) == ()


def test_a_complete_set_replaces_and_an_increment_changes() -> None:
    held = Dependencies()
    assert not held.complete
    held.apply(message(secret("s1", b"old"), config("c1", b"c"), complete=True))
    assert held.complete
    held.apply(message(secret("s1", b"new")))
    assert held.files(task(s1=target()))[0].data == b"new"
    held.apply(message(secret("s1", b""), remove=True))
    with pytest.raises(Missing, match="secret s1 not found"):
        held.files(task(s1=target()))
    held.apply(message(complete=True))
    with pytest.raises(Missing, match="config c1 not found"):
        held.files(task(c1=target()))


def test_a_secret_made_for_this_task_goes_before_the_common_one() -> None:
    held = Dependencies()
    held.apply(message(secret("s1", b"common"), secret("s1.t", b"own"), secret("s1.u", b"another's")))
    assert held.files(task(s1=target()))[0].data == b"own"


def test_owner_zero_stands_for_the_default_user_unless_the_task_names_one() -> None:
    held = Dependencies()
    held.apply(message(secret("s1", b"x")))
    assert [(f.uid, f.gid) for f in held.files(task(s1=target()))] == [(-1, -1)]
    assert [(f.uid, f.gid) for f in held.files(task(user="daemon", s1=target()))] == [(0, 0)]
    assert [(f.uid, f.gid) for f in held.files(task(s1=target(uid="5", gid="6")))] == [(5, 6)]


def test_templates_are_refused_by_name() -> None:
    held = Dependencies()
    templated = secret("s1", b"{{.Node.ID}}")
    templated.secret.spec.templating.name = "golang"
    held.apply(message(templated))
    with pytest.raises(BadInput, match="secret 's1': templating cannot be honoured"):
        held.files(task(s1=target()))


@pytest.mark.parametrize("name", ["/etc/app.conf", "../x", "a/../../x", "", ".", "a\0b"])
def test_a_target_that_is_no_file_of_the_tasks_own_is_refused(name: str) -> None:
    (why,) = refused_targets(task(s1=target(name)).spec.container)
    assert why.startswith("secret 's1': target ")


def test_two_files_of_one_name_and_owners_that_are_no_numbers_are_refused() -> None:
    said = list(refused_targets(task(s1=target("a"), s2=target("./a"), c1=target("a", uid="bob")).spec.container))
    assert said == ["secret 's2': target './a' is that of another one", "config 'c1': uid 'bob' is not a number"]


def test_a_config_without_a_file_is_refused() -> None:
    made = task()
    made.spec.container.configs.add(config_id="c", config_name="cred").runtime.SetInParent()
    assert list(refused_targets(made.spec.container)) == [
        "config 'cred' cannot be honoured: it has no file as its target"
    ]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_are_written_below_a_directory_that_only_their_user_enters(tmp_path: Path) -> None:
    place = tmp_path / "shared"
    files = (File("secrets/db/pw", b"x", 0o400, -1, -1), File("configs/a", b"y", 0o640, -1, -1))
    before = os.umask(0o077)
    try:
        made = FileSet(place / "t", files, -1, -1)
        made.write()
        made.write()  # again, after a restart
    finally:
        os.umask(before)
    assert (place / "t/secrets/db/pw").read_bytes() == b"x"
    assert (mode(place), mode(place / "t"), mode(place / "t/secrets/db")) == (0o711, 0o700, 0o755)
    assert (mode(place / "t/secrets/db/pw"), mode(place / "t/configs/a")) == (0o400, 0o640)
    withdraw(place / "t")
    assert not place.exists(), "the last one takes the place along"
    withdraw(place / "t")


def test_a_place_that_is_not_ours_is_not_used(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "shared").symlink_to(elsewhere)
    with pytest.raises(PermissionError, match="belongs to somebody else"):
        FileSet(tmp_path / "shared/t", (), -1, -1).write()
    assert list(elsewhere.iterdir()) == []
