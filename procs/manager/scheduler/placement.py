"""Spreading equal tasks over nodes (reference manager §7.4): each goes to the best node at its turn."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from procs.manager.scheduler.filters import Pipeline
from procs.manager.scheduler.nodeset import Family, NodeInfo, NodeSet


def spread(
    nodes: NodeSet, pipeline: Pipeline, family: Family, now: float, refresh: Callable[[str], None]
) -> Iterator[NodeInfo]:
    """The node for each next task, best first; ends when none is suitable any more.

    The caller takes a task's place into account (`NodeSet.track`) before it asks for the next. `refresh(node_id)` is
    called the first time a node would be chosen, and brings the node set up to date with it. Ties are broken by node
    id. A heap of the suitable nodes makes n tasks on m nodes O(m + n log m).
    """
    heap = [(info.rank(family, now), info.id) for info in nodes if pipeline.passes(info)]
    heapq.heapify(heap)
    checked: set[str] = set()
    while heap:
        _, node_id = heap[0]
        if node_id not in checked:
            checked.add(node_id)
            refresh(node_id)
        info = nodes.get(node_id)
        if info is None or not pipeline.passes(info):
            heapq.heappop(heap)
            continue
        yield info
        heapq.heapreplace(heap, (info.rank(family, now), node_id))
