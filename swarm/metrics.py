"""A process's numbers, and the Unix socket where Prometheus (or `curl --unix-socket`) reads them.

Metrics are plain Python numbers; `prometheus_client` renders them and is imported only at the first scrape, since its
import costs 3 MB in every process. Names are SwarmKit's where it has one (`swarm_node_info`, `swarm_node_manager`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of histogram buckets, seconds."""

REQUEST_DEADLINE = 5.0
"""Seconds a scraper may take for its request, and to read the answer."""


@dataclass(frozen=True)
class Sample:
    """One number from elsewhere (see `Metrics.add_source`), such as a counter of the bus."""

    name: str
    help: str
    value: float
    kind: str = "gauge"
    """`counter` or `gauge`."""
    labels: Mapping[str, str] = field(default_factory=dict)


class _Metric:
    """What counters, gauges and histograms have in common: a name, and one child per combination of label values."""

    kind = "untyped"

    def __init__(self, name: str, help_text: str, label_names: Sequence[str] = ()) -> None:
        self.name = name
        self.help = help_text
        self.label_names = tuple(label_names)
        self._children: dict[tuple[str, ...], Self] = {}

    def labels(self, *values: object) -> Self:
        """The child with these label values, made at first use."""
        key = tuple(str(v) for v in values)
        if not key or len(key) != len(self.label_names):
            raise ValueError(f"{self.name} has labels {self.label_names}, got values {key}")
        child = self._children.get(key)
        if child is None:
            child = self._children.setdefault(key, self._child())
        return child

    def clear(self) -> None:
        """Forget every child (label values that are no longer true)."""
        self._children.clear()

    def series(self) -> list[tuple[dict[str, str], Self]]:
        """Labels and metric of everything there is to show."""
        if not self.label_names:
            return [({}, self)]
        # A copy: the server's thread reads while the process's own thread may add children.
        return [(dict(zip(self.label_names, key, strict=True)), child) for key, child in list(self._children.items())]

    def _child(self) -> Self:
        return type(self)(self.name, self.help)


class Counter(_Metric):
    """Only goes up."""

    kind = "counter"

    def __init__(self, name: str, help_text: str, label_names: Sequence[str] = ()) -> None:
        super().__init__(name, help_text, label_names)
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount


class Gauge(_Metric):
    """Goes up and down."""

    kind = "gauge"

    def __init__(self, name: str, help_text: str, label_names: Sequence[str] = ()) -> None:
        super().__init__(name, help_text, label_names)
        self.value = 0.0

    def set(self, value: float) -> None:
        self.value = value

    def inc(self, amount: float = 1.0) -> None:
        self.value += amount

    def dec(self, amount: float = 1.0) -> None:
        self.value -= amount


class Histogram(_Metric):
    """Counts observations per bucket."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        help_text: str,
        label_names: Sequence[str] = (),
        buckets: Sequence[float] = DEFAULT_BUCKETS,
    ) -> None:
        super().__init__(name, help_text, label_names)
        self.bounds = tuple(sorted(buckets))
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def _child(self) -> Self:
        return type(self)(self.name, self.help, (), self.bounds)


M = TypeVar("M", bound=_Metric)


class Metrics:
    """The registry of one process. A metric with label names: pick a child with `.labels(value, …)`, then count."""

    def __init__(self) -> None:
        self._metrics: dict[str, _Metric] = {}
        self._sources: list[Callable[[], Iterable[Sample]]] = []

    def counter(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
        return self._add(Counter(name, help_text, labels))

    def gauge(self, name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
        return self._add(Gauge(name, help_text, labels))

    def histogram(
        self, name: str, help_text: str, labels: Sequence[str] = (), buckets: Sequence[float] = DEFAULT_BUCKETS
    ) -> Histogram:
        return self._add(Histogram(name, help_text, labels, buckets))

    def add_source(self, source: Callable[[], Iterable[Sample]]) -> None:
        """Call `source` at each scrape, from the server's thread, and show its samples too."""
        self._sources.append(source)

    def _add(self, metric: M) -> M:
        if metric.name in self._metrics:
            raise ValueError(f"metric {metric.name} exists already")
        self._metrics[metric.name] = metric
        return metric

    def render(self) -> bytes:
        """Everything in Prometheus's text format."""
        # late: 3 MB that only a scraped process needs
        from prometheus_client import core
        from prometheus_client.exposition import generate_latest

        shown: dict[str, core.Metric] = {}

        def family(name: str, help_text: str, kind: str) -> core.Metric:
            return shown.setdefault(name, core.Metric(name, help_text, kind))

        for metric in list(self._metrics.values()):
            target = family(metric.name, metric.help, metric.kind)
            for suffix, labels, value in _points(metric):
                target.add_sample(_stem(metric.name, metric.kind) + suffix, labels, value)
        for sample in (s for source in list(self._sources) for s in source()):
            suffix = "_total" if sample.kind == "counter" else ""
            target = family(sample.name, sample.help, sample.kind)
            target.add_sample(_stem(sample.name, sample.kind) + suffix, dict(sample.labels), sample.value)

        class Collector:
            def collect(self) -> Iterable[core.Metric]:
                return shown.values()

        return bytes(generate_latest(Collector()))


def _stem(name: str, kind: str) -> str:
    """The name that a sample's suffix goes to: only counters end in `_total` by rule, SwarmKit's gauges by name."""
    return name.removesuffix("_total") if kind == "counter" else name


def _points(metric: _Metric) -> Iterable[tuple[str, dict[str, str], float]]:
    """Suffix of the name, labels and value of each line of `metric`."""
    for labels, child in metric.series():
        match child:
            case Counter():
                yield "_total", labels, child.value
            case Gauge():
                yield "", labels, child.value
            case Histogram():
                total = 0
                for bound, count in zip((*map(str, child.bounds), "+Inf"), child.counts, strict=True):
                    total += count
                    yield "_bucket", {**labels, "le": bound}, total
                yield "_count", labels, total
                yield "_sum", labels, child.sum


class MetricsServer:
    """HTTP on a Unix socket (0600, in the 0700 runtime directory); one daemon thread, one scrape at a time."""

    def __init__(self, path: Path, metrics: Metrics) -> None:
        self.path = path
        self._metrics = metrics
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Whoever left it is gone: this process holds the name's lock.
            path.unlink(missing_ok=True)
            self._listener.bind(os.fspath(path))
            path.chmod(0o600)
            self._listener.listen(8)
        except BaseException:
            self._listener.close()
            raise
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving and remove the socket."""
        self._closing = True
        # shutdown, not close, is what wakes a thread that waits in accept
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(REQUEST_DEADLINE * 2)
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _serve(self) -> None:
        log = logging.getLogger(__name__)
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                if self._closing:
                    return
                raise
            with contextlib.closing(peer):
                try:
                    peer.settimeout(REQUEST_DEADLINE)
                    self._answer(peer)
                except OSError as error:
                    log.debug("a scraper went away: %s", error)

    def _answer(self, peer: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request and len(request) < 65536:
            part = peer.recv(4096)
            if not part:
                return
            request += part
        good = request.startswith((b"GET / ", b"GET /metrics ", b"GET /metrics?"))
        status, body = (b"200 OK", self._metrics.render()) if good else (b"404 Not Found", b"only /metrics is here\n")
        peer.sendall(
            b"HTTP/1.0 %b\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: %d\r\n"
            b"Connection: close\r\n\r\n%b" % (status, len(body), body)
        )
