"""Quantities as users write them."""

from __future__ import annotations

import click
import pytest

from procs.cli import values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1b", 1),
        ("512m", 512 << 20),
        ("512MiB", 512 << 20),
        ("1.5k", 1536),
        ("2G", 2 << 30),
        ("1t", 1 << 40),
    ],
)
def test_memory(text: str, expected: int) -> None:
    assert values.Memory().convert(text, None, None) == expected


@pytest.mark.parametrize("text", ["", "m", "-1", "1x", "1 mm", "0x10", "1e3"])
def test_what_is_no_memory_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(click.BadParameter, match="512m"):
        values.Memory().convert(text, None, None)


@pytest.mark.parametrize(("text", "expected"), [("1", 10**9), ("0.5", 5 * 10**8), ("0.000000001", 1)])
def test_cpus(text: str, expected: int) -> None:
    assert values.Cpus().convert(text, None, None) == expected


def test_more_than_nine_decimals_of_a_core_are_refused() -> None:
    with pytest.raises(click.BadParameter, match="CPU value cannot have more than 9 decimal places"):
        values.Cpus().convert("0.0000000001", None, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("0.25", 0.25), ("500ms", 0.5), ("1m30s", 90), ("2h", 7200), ("10us", 1e-5), ("1h1m1s", 3661)],
)
def test_durations_are_gos(text: str, seconds: float) -> None:
    assert values.Span().convert(text, None, None) == round(seconds * 1e9)


@pytest.mark.parametrize("text", ["", "s", "5 s", "1x", "-1s", "1m30"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration"):
        values.Span().convert(text, None, None)


@pytest.mark.parametrize("text", ["SIGTERM", "term", "TERM", "15"])
def test_signals_by_name_or_number(text: str) -> None:
    assert values.Signal().convert(text, None, None) == "SIGTERM"


@pytest.mark.parametrize("text", ["SIGNOPE", "0", "99", ""])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a signal"):
        values.Signal().convert(text, None, None)


def test_pairs_keep_everything_after_the_first_equals_sign() -> None:
    assert values.pairs(["a=b=c", "d=", "e", "a=x"], "--label") == {"a": "x", "d": "", "e": ""}


def test_a_pair_without_a_key_is_refused() -> None:
    with pytest.raises(click.UsageError, match="--label: '=x' is not KEY=VALUE"):
        values.pairs(["=x"], "--label")
