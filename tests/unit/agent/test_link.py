from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from procs.agent.link import Sequence
from swarm.api import dispatcher_pb2

Message = dispatcher_pb2.AssignmentsMessage


def message(applies_to: str, results_in: str, *, complete: bool = False) -> Message:
    kind = Message.COMPLETE if complete else Message.INCREMENTAL
    return Message(type=kind, applies_to=applies_to, results_in=results_in)


def test_a_stream_begins_with_a_complete_set_that_applies_to_nothing() -> None:
    assert Sequence().accept(message("", "1", complete=True))
    assert not Sequence().accept(message("", "1"))
    assert not Sequence().accept(message("1", "2"))
    assert not Sequence().accept(message("1", "2", complete=True))


def test_each_message_applies_to_the_result_of_the_one_before() -> None:
    sequence = Sequence()
    assert sequence.accept(message("", "1", complete=True))
    assert sequence.accept(message("1", "2"))
    assert not sequence.accept(message("1", "3")), "a gap"
    assert not sequence.accept(message("", "1", complete=True)), "a beginning in the middle"
    assert sequence.accept(message("2", "3"))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4))))
def test_what_is_accepted_is_one_unbroken_chain(numbers: list[tuple[int, int]]) -> None:
    sequence = Sequence()
    last = ""
    for before, after in numbers:
        applies_to = str(before) if before else ""
        if sequence.accept(message(applies_to, str(after), complete=not before)):
            assert applies_to == last
            last = str(after)
