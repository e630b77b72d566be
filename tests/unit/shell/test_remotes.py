"""Known managers: weights as SwarmKit has them, and state.json."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from swarm.errors import CorruptFile
from swarm.remotes import DEFAULT_WEIGHT, NoRemotes, Peer, Remotes, load_peers, save_peers

A, B = Peer("a", "a:1"), Peer("b", "b:1")


def test_weights_follow_the_reference() -> None:
    remotes = Remotes()
    seen = []
    for weight in [10] * 5 + [-10] * 7:
        remotes.observe(A, weight)
        seen.append(remotes.weights()[A])
    assert seen == [5, 8, 9, 10, 10, 0, -5, -7, -8, -9, -9, -9]  # reference node-and-ca §8


def test_weights_are_clipped() -> None:
    remotes = Remotes()
    for _ in range(30):
        remotes.observe(A, 10**9)
    assert remotes.weights()[A] == 256


def test_observe_if_exists_makes_nobody_known() -> None:
    remotes = Remotes()
    remotes.observe_if_exists(A, 10)
    assert remotes.peers() == []


def test_selection_follows_weights_and_still_tries_the_bad_one() -> None:
    remotes = Remotes([A, B])
    for _ in range(5):
        remotes.observe(B, -10)
    total = 5 + 0.001 + 0.001
    picks = Counter(remotes.select(uniform=lambda _low, high, i=i: high * i / 10_000) for i in range(1, 10_001))
    assert picks[B] == pytest.approx(10_000 * 0.001 / total, abs=2)
    assert picks[B] >= 1


def picks(remotes: Remotes, number: int = 10_000) -> Counter[Peer]:
    """How often each is chosen by points spread evenly over all there are."""
    return Counter(remotes.select(uniform=lambda _, high, i=i: high * i / number) for i in range(1, number + 1))


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([10] * 5, [1] * 5),  # even
        ([0, 0, 0], [1, 1, 1]),  # nobody is known to be good
        ([-10, -10], [1, 1]),
        ([1, 256, 256], [1, 256, 256]),  # large ranges
        ([10, 10, -10], [1, 1, 0.0001]),
    ],
)
def test_managers_are_chosen_in_proportion_to_their_weights(weights: list[int], shares: list[float]) -> None:
    remotes = Remotes()
    peers = [Peer(str(number), f"{number}:1") for number in range(len(weights))]
    for peer, weight in zip(peers, weights, strict=True):
        for _ in range(12):  # until it has moved all the way
            remotes.observe(peer, weight)
    found, whole = picks(remotes), sum(shares)
    for peer, share in zip(peers, shares, strict=True):
        assert found[peer] == pytest.approx(10_000 * share / whole, rel=0.02, abs=3)


def test_one_bad_observation_of_three_leaves_less_than_a_thousandth_of_the_choices() -> None:
    remotes = Remotes([A, B, Peer("c", "c:1")])
    remotes.observe(A, -DEFAULT_WEIGHT)
    assert picks(remotes)[A] < 10
    assert remotes.select(uniform=lambda _low, _high: 0.0) == A, "yet it may be"


@pytest.mark.parametrize("excluded", ["a", "a:1"])
def test_exclusion_by_id_or_address(excluded: str) -> None:
    assert Remotes([A, B]).select([excluded]) == B


def test_nobody_left_says_swarmkits_words() -> None:
    with pytest.raises(NoRemotes, match="no remote hosts provided"):
        Remotes([A]).select(["a"])


def test_a_dispatchers_list_replaces_but_an_empty_one_does_not() -> None:
    remotes = Remotes([A])
    remotes.replace([(B, 10), (Peer("c", ""), 10)])
    assert remotes.peers() == [B]
    remotes.replace([])
    assert remotes.peers() == [B]


def test_state_json_is_swarmkits(tmp_path) -> None:
    path = tmp_path / "state.json"
    save_peers(path, [B, A, Peer("", "c:1"), A])
    assert json.loads(path.read_text()) == [
        {"addr": "c:1"},
        {"node_id": "a", "addr": "a:1"},
        {"node_id": "b", "addr": "b:1"},
    ]
    assert load_peers(path) == [Peer("", "c:1"), A, B]
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_file_is_nobody(tmp_path) -> None:
    assert load_peers(tmp_path / "state.json") == []


@pytest.mark.parametrize("junk", [b"", b"{", b"{}", b"[1]", b'[{"addr": 1}]', b"\xff\xfe"])
def test_a_corrupt_file_is_refused_by_name_and_left_alone(tmp_path, junk: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(junk)
    with pytest.raises(CorruptFile, match=r"state\.json") as caught:
        load_peers(path)
    assert caught.value.remedy
    assert path.read_bytes() == junk
