"""The coordinator's hands: bus values become events, effects become files, messages and orders to supervisord."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from ipc import topics
from ipc.bus import Bus, Value
from procs.coordinator.effects import (
    Data,
    DeleteErasedData,
    Effect,
    Event,
    Gone,
    Heard,
    NotRunning,
    Publish,
    SavePeers,
    Say,
    SetManagerDataAside,
    StartManager,
    StopManager,
    Tick,
)
from procs.coordinator.machine import Machine
from swarm.backoff import Backoff, BackoffPolicy
from swarm.errors import Twin, Unreachable
from swarm.files import fsync_directory
from swarm.lock import ProcessLock, holder_pid
from swarm.logs import bind, set_node_id
from swarm.metrics import Gauge, Metrics, Sample
from swarm.nodestate import KEPT, NodeState, save_node_state
from swarm.paths import Paths
from swarm.process import Context
from swarm.remotes import save_peers
from swarm.supervisor_rpc import ALREADY_STARTED, NOT_RUNNING, SupervisorClient, SupervisorFault

SUBSCRIPTIONS = ("certificate", "node.changes", "managers", "manager", "agent", "process.*")

_ORDERS = BackoffPolicy(base=0.2, factor=2.0, cap=5.0)
"""Seconds between tries of an order that supervisord did not take."""

_ERASED = "manager.erased-"


@dataclass
class Order:
    """The newest order for the manager program that supervisord has not taken yet."""

    start: bool
    due: float
    backoff: Backoff = field(default_factory=lambda: Backoff(_ORDERS))


class Shell:
    """Runs the machine until asked to stop."""

    def __init__(self, context: Context, bus: Bus, machine: Machine, metrics: Metrics) -> None:
        self._paths: Paths = context.paths
        self._log: logging.Logger = context.log
        self._stop = context.stop
        self._bus = bus
        self._machine = machine
        self._supervisor = SupervisorClient(context.paths.supervisor_socket)
        self._order: Order | None = None
        self._silent: set[str] = set()
        self._kept: NodeState | None = None
        self._info: Gauge = metrics.gauge("swarm_node_info", "Information about this node", ("swarm_id", "node_id"))
        self._is_manager: Gauge = metrics.gauge("swarm_node_manager", "Whether this node is a manager")
        self._transitions = metrics.counter("swarmvisor_coordinator_transitions", "Steps of the state machine")
        metrics.add_source(self._bus_samples)

    def run(self) -> None:
        """Until SIGTERM."""
        self._perform(self._machine.start())
        self._feed(self._look())
        while not self._stop.is_set():
            for value in self._bus.poll(self._patience(), fds=(self._stop.fileno(),)):
                self._hear(value)
            self._watch_silence()
            now = time.monotonic()
            deadline = self._machine.deadline()
            if deadline is not None and now >= deadline:
                self._feed(Tick())
            if self._order is not None and now >= self._order.due:
                self._try_order(self._order)

    def _patience(self) -> float | None:
        now = time.monotonic()
        waits = [self._machine.deadline(), self._order.due if self._order else None, self._bus.next_timer()]
        return max(0.0, min(due for due in waits if due is not None) - now)

    def _hear(self, value: Value) -> None:
        if isinstance(value.body, topics.Certificate):
            self._note_certificate(value.body)
        self._feed(Heard(value.topic, value.body, value.pid, value.cause))
        if value.topic == f"process.{topics.MANAGER}":
            self._feed(self._look())

    def _note_certificate(self, certificate: topics.Certificate) -> None:
        set_node_id(certificate.node_id)
        self._info.clear()
        if certificate.node_id:
            self._info.labels(certificate.cluster_id, certificate.node_id).set(1)
        self._is_manager.set(certificate.role == topics.MANAGER_ROLE)

    def _watch_silence(self) -> None:
        for owner in (topics.AGENT, topics.MANAGER):
            silent = self._bus.silent(owner)
            if silent and owner not in self._silent:
                self._silent.add(owner)
                self._feed(Gone(owner))
            elif not silent and owner in self._silent:
                self._silent.discard(owner)
                last = self._bus.last(owner)
                if last is not None:
                    self._hear(last)

    def _feed(self, event: Event) -> None:
        self._perform(self._machine.handle(event, time.monotonic()))

    # -- effects -----------------------------------------------------------------------------------------------------

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Say(text, cause):
                    self._transitions.inc()
                    bind(self._log, cause=cause).info("%s", text)
                case Publish(topic, body, cause):
                    if isinstance(body, topics.Node):
                        words = " ".join(part for part in (body.cause, body.step) if part)
                        bind(self._log, cause=cause).info("node: %s%s", body.state, f": {words}" if words else "")
                        self._keep(body)
                    self._bus.publish(topic, body, cause=cause)
                case SavePeers(peers):
                    save_peers(self._paths.state_json, peers)
                case StartManager():
                    self._order = Order(start=True, due=time.monotonic())
                case StopManager():
                    self._order = Order(start=False, due=time.monotonic())
                case SetManagerDataAside(fingerprint):
                    self._set_aside(fingerprint)
                case DeleteErasedData():
                    self._delete_erased()

    def _keep(self, node: topics.Node) -> None:
        """On disk, how the node stands: for `status` when nothing runs. Once for each state and cause."""
        facts = self._machine.facts
        port = facts.changes.vxlan_port if facts.changes else 0
        said = NodeState(node.state, node.cause, node.node_id, vxlan_port=port, foreign=facts.foreign)
        if node.state not in KEPT or said == self._kept:
            return
        self._kept = said
        save_node_state(self._paths.node_state, replace(said, at=int(time.time())))

    def _try_order(self, order: Order) -> None:
        """One try; supervisord answers at once (no wait), or is asked again later."""
        verb = "start" if order.start else "stop"
        self._order = None
        holder = holder_pid(self._paths.lock(topics.MANAGER)) if order.start else None
        if holder is not None and not self._machine.facts.runs(topics.MANAGER):
            # An operator runs it by hand (`swarmvisor debug run`), or one of before is still dying.
            self._log.info("the manager is not started yet: process %d holds its lock", holder)
            self._again(order)
            return
        try:
            self._supervisor.call(f"supervisor.{verb}Process", topics.MANAGER, False)
        except SupervisorFault as fault:
            match order.start, fault.code:
                case (True, code) if code == ALREADY_STARTED:
                    return
                case (False, code) if code == NOT_RUNNING:
                    self._feed(NotRunning())
                    return
            self._log.error("%s", fault.describe())
            self._again(order)
        except Unreachable as error:
            self._log.warning("%s", error.describe())
            self._again(order)
        else:
            self._log.info("asked supervisord to %s the manager", verb)

    def _again(self, order: Order) -> None:
        order.due = time.monotonic() + order.backoff.failed()
        self._order = order

    # -- a manager's data --------------------------------------------------------------------------------------------

    def _look(self) -> Data:
        return Data(present=self._paths.manager.is_dir(), erased=bool(self._erased()))

    def _erased(self) -> list[Path]:
        return sorted(self._paths.state.glob(f"{_ERASED}*"))

    def _set_aside(self, fingerprint: str) -> None:
        # A manager that an operator runs by hand is not supervisord's; its lock tells of it.
        lock = ProcessLock(self._paths.lock(topics.MANAGER))
        try:
            lock.acquire(timeout=0)
        except Twin as error:
            self._log.warning("%s is kept: a manager still runs: %s", self._paths.manager, error.describe())
            return
        try:
            target = self._paths.state / f"{_ERASED}{fingerprint}"
            taken = 1
            while target.exists():
                taken += 1
                target = self._paths.state / f"{_ERASED}{fingerprint}-{taken}"
            os.rename(self._paths.manager, target)
            fsync_directory(self._paths.state)
            self._log.info("this node is a worker: manager data set aside as %s", target.name)
        finally:
            lock.release()

    def _delete_erased(self) -> None:
        for directory in self._erased():
            shutil.rmtree(directory)
            self._log.info("another manager has given this node a session: %s deleted", directory.name)
        fsync_directory(self._paths.state)

    def _bus_samples(self) -> Iterable[Sample]:
        for name, count in self._bus.counters.items():
            yield Sample(f"swarmvisor_bus_{name}_total", "Counted by the bus.", count, "counter")
