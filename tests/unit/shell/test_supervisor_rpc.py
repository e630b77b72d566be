"""The XML-RPC codec against the standard library's, and what becomes of bad answers."""

from __future__ import annotations

import xmlrpc.client

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.errors import Unreachable
from swarm.supervisor_rpc import SupervisorClient, SupervisorFault, decode_answer, encode_call

# What XML can carry: no control characters, no lone surrogates; carriage returns are normalised by every XML parser.
texts = st.text(st.characters(blacklist_categories=("Cs", "Cc")))
scalars = st.one_of(
    st.booleans(), st.integers(-(2**31), 2**31 - 1), texts, st.floats(allow_nan=False, allow_infinity=False)
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=10)


@settings(max_examples=30)
@given(st.lists(values))
def test_calls_are_what_the_standard_library_understands(args: list[object]) -> None:
    params, method = xmlrpc.client.loads(encode_call("ns.method", args))
    assert method == "ns.method"
    assert list(params) == args


@settings(max_examples=30)
@given(values)
def test_answers_of_the_standard_library_are_understood(value: object) -> None:
    document = xmlrpc.client.dumps((value,), methodresponse=True)
    assert decode_answer(document.encode()) == value


def test_a_fault_carries_code_and_text() -> None:
    document = xmlrpc.client.dumps(xmlrpc.client.Fault(70, "NOT_RUNNING: agent"), methodresponse=True)
    with pytest.raises(SupervisorFault, match="NOT_RUNNING: agent") as caught:
        decode_answer(document.encode(), "supervisor.stopProcess")
    assert caught.value.code == 70


@pytest.mark.parametrize(
    "junk", [b"", b"junk", b"<methodResponse/>", b"<a><b></a>", b"<methodResponse><params><param>"]
)
def test_an_answer_that_is_none_is_unreachable(junk: bytes) -> None:
    with pytest.raises(Unreachable):
        decode_answer(junk, "x")


@given(st.binary())
def test_any_bytes_are_an_answer_or_unreachable(junk: bytes) -> None:
    with pytest.raises(Unreachable):
        decode_answer(junk)


def test_no_socket_is_unreachable_with_a_remedy(short_dir) -> None:
    with pytest.raises(Unreachable, match=r"s\.sock") as caught:
        SupervisorClient(short_dir / "s.sock").call("supervisor.getState")
    assert "swarmvisor up" in caught.value.remedy
