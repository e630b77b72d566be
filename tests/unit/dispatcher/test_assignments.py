from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from procs.manager.dispatcher.assignments import MAX_CHANGES, AssignmentSet, Change, Message, Numbering
from swarm.api import objects_pb2, types_pb2

State = types_pb2.TaskState
UPDATE, REMOVE = Change.AssignmentAction.UPDATE, Change.AssignmentAction.REMOVE


class World:
    def __init__(self) -> None:
        self.objects: dict[tuple[type[Any], str], Any] = {}

    def put(self, found: Any) -> None:
        self.objects[type(found), found.id] = found

    def lookup(self, kind: type[Any], id_: str) -> Any:
        return self.objects.get((kind, id_))


def task(id_: str = "t", state: Any = State.ASSIGNED, desired: Any = State.RUNNING, **refs: list[str]) -> Any:
    made = objects_pb2.Task(id=id_, node_id="n", desired_state=desired)
    made.status.state = state
    made.spec.container.image = "host"
    for secret in refs.get("secrets", []):
        made.spec.container.secrets.add(secret_id=secret)
    for config in refs.get("configs", []):
        made.spec.container.configs.add(config_id=config)
    return made


def shown(changes: list[Change]) -> list[tuple[str, str, str]]:
    found = []
    for change in changes:
        kind = change.assignment.WhichOneof("item")
        assert kind is not None
        action = "update" if change.action == UPDATE else "remove"
        found.append((action, kind, getattr(change.assignment, kind).id))
    return found


def subject(world: World | None = None) -> AssignmentSet:
    return AssignmentSet("n", (world or World()).lookup)


def test_complete_has_every_task_from_assigned_on_and_nothing_before() -> None:
    tasks = [task("a", State.PENDING), task("b"), task("c", State.RUNNING), task("d", State.FAILED)]
    assert [i for _, _, i in shown(subject().complete([*tasks, task("e", State.ORPHANED)], ()))] == ["b", "c", "d", "e"]


def test_status_alone_is_not_sent_back() -> None:
    wanted = subject()
    wanted.complete([task()], ())
    assert wanted.task("t", task(state=State.RUNNING)) == []
    assert wanted.task("t", task(state=State.FAILED)) == []


def test_desired_state_is_sent() -> None:
    wanted = subject()
    wanted.complete([task(state=State.RUNNING)], ())
    assert shown(wanted.task("t", task(state=State.RUNNING, desired=State.SHUTDOWN))) == [("update", "task", "t")]


def test_task_still_at_assigned_is_sent_again() -> None:
    wanted = subject()
    wanted.complete([task()], ())
    assert shown(wanted.task("t", task())) == [("update", "task", "t")]


def test_deleted_task_is_removed_by_id_alone_and_once() -> None:
    wanted = subject()
    wanted.complete([task()], ())
    (change,) = wanted.task("t", None)
    assert (change.action, change.assignment.task) == (REMOVE, objects_pb2.Task(id="t"))
    assert wanted.task("t", None) == []


def test_task_that_was_never_sent_is_not_removed() -> None:
    wanted = subject()
    assert wanted.task("t", task(state=State.PENDING)) == []
    assert wanted.task("t", None) == []


def test_dependencies_come_before_the_task_and_go_with_their_last_user() -> None:
    world = World()
    world.put(objects_pb2.Secret(id="s"))
    world.put(objects_pb2.Config(id="c"))
    wanted = subject(world)
    first = wanted.task("a", task("a", secrets=["s"], configs=["c"]))
    assert shown(first) == [("update", "secret", "s"), ("update", "config", "c"), ("update", "task", "a")]
    assert shown(wanted.task("b", task("b", secrets=["s"]))) == [("update", "task", "b")]
    assert shown(wanted.task("a", None)) == [("remove", "task", "a"), ("remove", "config", "c")]
    assert shown(wanted.task("b", task("b", State.COMPLETE, secrets=["s"]))) == [("remove", "secret", "s")]


def test_dependencies_of_an_ended_task_are_withdrawn_once() -> None:
    world = World()
    world.put(objects_pb2.Secret(id="s"))
    wanted = subject(world)
    wanted.task("t", task(secrets=["s"]))
    ended = task(state=State.FAILED, desired=State.SHUTDOWN, secrets=["s"])
    assert shown(wanted.task("t", ended)) == [("update", "task", "t"), ("remove", "secret", "s")]
    assert wanted.task("t", ended) == []
    assert shown(wanted.task("t", None)) == [("remove", "task", "t")]


def test_task_that_ended_before_brings_no_dependencies() -> None:
    world = World()
    world.put(objects_pb2.Secret(id="s"))
    assert shown(subject(world).complete([task(state=State.COMPLETE, secrets=["s"])], ())) == [("update", "task", "t")]


def test_missing_dependency_is_left_out_and_the_task_sent() -> None:
    assert shown(subject().task("t", task(secrets=["nowhere"]))) == [("update", "task", "t")]


def test_published_volume_is_assigned_and_withdrawn_whole() -> None:
    volume = objects_pb2.Volume(id="v")
    volume.spec.driver.name = "csi"
    volume.volume_info.volume_id = "csi-7"
    publish = volume.publish_status.add(node_id="n", state=types_pb2.VolumePublishStatus.PUBLISHED)
    wanted = subject()
    (change,) = wanted.volume("v", volume)
    assert (change.action, change.assignment.volume.volume_id) == (UPDATE, "csi-7")
    assert wanted.volume("v", volume) == []
    leaving = objects_pb2.Volume()
    leaving.CopyFrom(volume)
    leaving.publish_status[0].state = types_pb2.VolumePublishStatus.PENDING_NODE_UNPUBLISH
    (change,) = wanted.volume("v", leaving)
    assert (change.action, change.assignment.volume.volume_id) == (REMOVE, "csi-7")
    assert change.assignment.volume.driver.name == "csi"
    publish.state = types_pb2.VolumePublishStatus.PENDING_UNPUBLISH
    assert wanted.volume("v", volume) == []
    assert wanted.volume("v", None) == []


@given(st.lists(st.integers(0, 350), max_size=6))
def test_messages_form_a_chain_without_gaps(sizes: list[int]) -> None:
    numbering = Numbering()
    messages = [numbering.complete([])]
    for size in sizes:
        messages += numbering.incremental([Change() for _ in range(size)])
    assert (messages[0].type, messages[0].applies_to) == (Message.Type.COMPLETE, "")
    for before, after in pairwise(messages):
        assert after.type == Message.Type.INCREMENTAL
        assert after.applies_to == before.results_in
        assert 0 < len(after.changes) <= MAX_CHANGES
    assert [m.results_in for m in messages] == [str(n + 1) for n in range(len(messages))]


STATES = [State.PENDING, State.ASSIGNED, State.RUNNING, State.SHUTDOWN, State.FAILED]


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.one_of(st.none(), st.sampled_from(STATES)),
            st.lists(st.sampled_from("xyz"), unique=True),
        ),
        max_size=40,
    )
)
def test_client_that_applies_the_changes_holds_what_the_living_tasks_need(
    story: list[tuple[str, Any, list[str]]],
) -> None:
    world = World()
    for name in "xyz":
        world.put(objects_pb2.Secret(id=name))
    wanted = subject(world)
    truth: dict[str, Any] = {}
    tasks: set[str] = set()
    secrets: set[str] = set()
    for name, state, refs in story:
        if state is None:
            truth.pop(name, None)
            changes = wanted.task(name, None)
        else:
            known = truth.get(name)
            if known is None:
                truth[name] = task(name, state, secrets=refs)
            else:  # specs are immutable and states only grow
                needs = [s.secret_id for s in known.spec.container.secrets]
                truth[name] = task(name, max(state, known.status.state), secrets=needs)
            changes = wanted.task(name, truth[name])
        for action, kind, id_ in shown(changes):
            held = tasks if kind == "task" else secrets
            held.add(id_) if action == "update" else held.remove(id_)
        living = [t for t in truth.values() if State.ASSIGNED <= t.status.state <= State.RUNNING]
        assert tasks == {t.id for t in truth.values() if t.status.state >= State.ASSIGNED}
        assert secrets == {s.secret_id for t in living for s in t.spec.container.secrets}
