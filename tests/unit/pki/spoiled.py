"""Texts that were right until something happened to them, for the tests that nothing falls over them."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

FUZZ = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def spoiled(draw: st.DrawFn, *valid: bytes) -> bytes:
    """One of `valid` with bytes flipped, set, cut off, cut out, put in or doubled; sometimes noise instead."""
    data = draw(st.sampled_from(valid))
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    for _ in range(draw(st.integers(1, 3))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(1, 40))
        head, piece, tail = data[:at], data[at : at + length], data[at + length :]
        match draw(st.sampled_from(("flip", "set", "end", "cut", "insert", "double"))):
            case "flip":
                data = head + bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in piece[:1]) + data[at + 1 :]
            case "set":
                data = head + draw(st.binary(min_size=1, max_size=1)) + data[at + 1 :]
            case "end":
                data = head
            case "cut":
                data = head + tail
            case "insert":
                data = head + draw(st.binary(min_size=1, max_size=40)) + piece + tail
            case _:
                data = head + piece + piece + tail
    return data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["addr", "node_id", "x"]), inner),
    max_leaves=4,
)
