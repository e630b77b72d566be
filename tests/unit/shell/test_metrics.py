"""Numbers in, Prometheus's text out."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from swarm.metrics import Metrics, Sample


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def test_everything_is_rendered_as_prometheus_parses_it() -> None:
    metrics = Metrics()
    metrics.counter("calls_total", "Calls").inc(3)
    metrics.gauge("swarm_node_info", "Info", ("swarm_id", "node_id")).labels("s", 'n"1').set(1)
    histogram = metrics.histogram("wait_seconds", "Waits", ("what",), buckets=(0.1, 1.0)).labels("store")
    for value in (0.05, 0.1, 0.5, 7):
        histogram.observe(value)
    metrics.add_source(lambda: [Sample("dropped", "Drops", 2, "counter", {"why": "old"})])
    seen = samples(metrics)
    what = ("what", "store")
    assert seen["calls_total", ()] == 3
    assert seen["swarm_node_info", (("node_id", 'n"1'), ("swarm_id", "s"))] == 1
    assert seen["wait_seconds_bucket", (("le", "0.1"), what)] == 2
    assert seen["wait_seconds_bucket", (("le", "1.0"), what)] == 3
    assert seen["wait_seconds_bucket", (("le", "+Inf"), what)] == 4
    assert seen["wait_seconds_sum", (what,)] == pytest.approx(7.65)
    assert seen["dropped_total", (("why", "old"),)] == 2


def test_a_name_is_taken_once() -> None:
    metrics = Metrics()
    metrics.gauge("x", "X")
    with pytest.raises(ValueError, match="exists already"):
        metrics.counter("x", "X")


def test_wrong_labels_are_refused() -> None:
    gauge = Metrics().gauge("x", "X", ("a",))
    with pytest.raises(ValueError, match="labels"):
        gauge.labels("1", "2")
    with pytest.raises(ValueError, match="labels"):
        gauge.labels()


def test_cleared_children_are_gone() -> None:
    metrics = Metrics()
    gauge = metrics.gauge("x", "X", ("a",))
    gauge.labels("old").set(1)
    gauge.clear()
    assert samples(metrics) == {}
