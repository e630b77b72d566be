"""What a node must be and have for a task: filters in a fixed order (reference manager §7.2).

A filter is prepared for a task and is then absent (it has nothing to ask), or a test of nodes. The first test that
fails decides why a node is not suitable. Another filter is another entry in `FILTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from procs.manager.constraints import Constraint, all_match, parse
from procs.manager.scheduler.generic import quantities
from procs.manager.scheduler.nodeset import NodeInfo
from swarm.api.objects_pb2 import Task
from swarm.errors import BadInput

Test = Callable[[NodeInfo], bool]

HOST_IMAGE = "host"
"""The image that is the host's own file system (DESIGN §7)."""

_ALIASES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Filter:
    """One reason why a node may not be suitable."""

    name: str
    prepare: Callable[[Task], Test | None]
    """The test for a task's node, or None if every node will do."""
    one: str
    """Why one node failed."""
    many: str
    """Why several did; `{}` is their number."""

    def explain(self, failed: int) -> str:
        """In SwarmKit's words, why `failed` nodes are not suitable."""
        return self.one if failed == 1 else self.many.format(failed)


def ready(_task: Task) -> Test | None:
    """READY and ACTIVE."""
    return lambda info: info.ready


def resources(task: Task) -> Test | None:
    """What is reserved is available."""
    wanted = task.spec.resources.reservations
    cpu, memory, generic = wanted.nano_cpus, wanted.memory_bytes, quantities(wanted.generic)
    if not cpu and not memory and not generic:
        return None

    def fits(info: NodeInfo) -> bool:
        offers = info.offers
        return (
            cpu <= offers.nano_cpus - info.cpu
            and memory <= offers.memory_bytes - info.memory
            and (not generic or info.generic.enough(offers.generic, generic))
        )

    return fits


def constraints_of(task: Task) -> list[Constraint] | None:
    """The placement constraints; None if they do not parse (the Control API takes none such)."""
    try:
        return parse(task.spec.placement.constraints)
    except BadInput:
        return None


def needs_process(task: Task) -> bool:
    """Whether only a node that runs processes will do: the image is `host` (any tag), or the placement asks for it."""
    image, _, _ = task.spec.container.image.partition(":")
    if image == HOST_IMAGE:
        return True
    return any(
        constraint.equal and constraint.key.lower() == "engine.labels.runtime" and constraint.value.lower() == "process"
        for constraint in constraints_of(task) or ()
    )


def runtime(task: Task) -> Test | None:
    """A task that is a process needs a node that runs processes."""
    return (lambda info: info.process) if needs_process(task) else None


def constraints(task: Task) -> Test | None:
    """All placement constraints hold. Some that do not parse hold on no node: better seen than ignored."""
    if not task.spec.placement.constraints:
        return None
    parsed = constraints_of(task)
    if parsed is None:
        return lambda _info: False
    return lambda info: info.node is not None and all_match(parsed, info.node)


def platform(task: Task) -> Test | None:
    """The node's platform is one of those listed; an empty part of an entry is any."""
    wanted = [(_architecture(entry.architecture), entry.os.lower()) for entry in task.spec.placement.platforms]
    if not wanted:
        return None

    def suits(info: NodeInfo) -> bool:
        if info.node is None or not info.node.description.HasField("platform"):
            return False
        own = info.node.description.platform
        architecture, system = _architecture(own.architecture), own.os.lower()
        return any(a in ("", architecture) and s in ("", system) for a, s in wanted)

    return suits


def _architecture(name: str) -> str:
    return _ALIASES.get(name.lower(), name.lower())


def max_replicas(task: Task) -> Test | None:
    """Fewer tasks of the service than the limit are active on the node."""
    limit, service_id = task.spec.placement.max_replicas, task.service_id
    return (lambda info: info.active_of.get(service_id, 0) < limit) if limit else None


def _filter(prepare: Callable[[Task], Test | None], one: str) -> Filter:
    return Filter(prepare.__name__, prepare, one, one.replace("1 node", "{} nodes"))


FILTERS: tuple[Filter, ...] = (
    _filter(ready, "1 node not available for new tasks"),
    _filter(resources, "insufficient resources on 1 node"),
    # The place of SwarmKit's plugin filter, of which this is a kind.
    _filter(runtime, "no process runtime on 1 node"),
    _filter(constraints, "scheduling constraints not satisfied on 1 node"),
    _filter(platform, "unsupported platform on 1 node"),
    _filter(max_replicas, "max replicas per node limit exceed"),
)
"""In evaluation order."""


class Pipeline:
    """The filters that have something to ask for one task, and for those equal to it."""

    def __init__(self, task: Task, filters: Iterable[Filter] = FILTERS) -> None:
        prepared = ((filter_, filter_.prepare(task)) for filter_ in filters)
        self._tests = [(filter_, test) for filter_, test in prepared if test is not None]

    def passes(self, info: NodeInfo) -> bool:
        """Whether the node is suitable."""
        return all(test(info) for _, test in self._tests)

    def explain(self, infos: Iterable[NodeInfo]) -> str:
        """Why none of `infos` is suitable: each node counted under the first filter that it fails; most nodes first,
        then in filter order. Empty if there are no nodes."""
        failed = [0] * len(self._tests)
        for info in infos:
            for number, (_, test) in enumerate(self._tests):
                if not test(info):
                    failed[number] += 1
                    break
        order = sorted(range(len(failed)), key=lambda number: -failed[number])
        return "; ".join(self._tests[number][0].explain(failed[number]) for number in order if failed[number])
