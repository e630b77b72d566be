"""One node and its swarm as a model: the real brains of coordinator, renewer and role manager, the rest scripted.

Scripted are the CA, supervisord, the agent, the manager program, the disk, the bus and both clocks. Nothing happens by
itself: every message on its way, every answer, order and restart is an *act* that waits until somebody picks it, so
that any order, delay and loss of intermediate values can be tried. What a process keeps in memory dies with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ipc import topics
from procs.coordinator import effects as ordered
from procs.coordinator.machine import Machine
from procs.manager.roles import HandOver, Hold, RemoveMember, SetRole, decide
from procs.renewer import events as asked
from procs.renewer.machine import Renewer
from swarm.api import raft_pb2, types_pb2
from swarm.api.objects_pb2 import Node
from swarm.exits import INTENDED, ExitCode
from swarm.remotes import Peer

NODE, OTHER = "node-self", "node-other"
ROLE = {topics.WORKER_ROLE: types_pb2.WORKER, topics.MANAGER_ROLE: types_pb2.MANAGER}
NAME = {number: name for name, number in ROLE.items()}
START = 1_700_000_000.0
YEARS = 10 * 365 * 86400

HEARS = {
    topics.COORDINATOR: ("certificate", "node.changes", "managers", "manager", "agent", "process.manager"),
    topics.RENEWER: ("role", "node.changes", "manager", "remotes"),
    topics.MANAGER: ("certificate",),
}
OWNER = {
    "certificate": topics.RENEWER,
    "node.changes": topics.AGENT,
    "managers": topics.AGENT,
    "agent": topics.AGENT,
    "manager": topics.MANAGER,
    "role": topics.COORDINATOR,
    "remotes": topics.COORDINATOR,
    "node": topics.COORDINATOR,
    "process.manager": topics.SUPERVISOR,
}


@dataclass
class Swarm:
    """The other managers: the node object, the list of managers, and the CA."""

    old_ca: bool = False
    """Knows no observed role: reports none, and issues the desired one."""
    node: Node = field(default_factory=lambda: Node(id=NODE))
    member: bool = False
    others_reachable: bool = True
    failures: int = 0
    """Requests that the CA is going to refuse."""
    signed: int = 0

    def members(self) -> list[raft_pb2.RaftMember]:
        found = [raft_pb2.RaftMember(raft_id=1, node_id=OTHER)]
        found[0].status.leader = True
        if not self.others_reachable:
            found[0].status.reachability = types_pb2.RaftMemberStatus.UNREACHABLE
        else:
            found[0].status.reachability = types_pb2.RaftMemberStatus.REACHABLE
        if self.member:
            found.append(raft_pb2.RaftMember(raft_id=2, node_id=NODE))
            found[1].status.reachability = types_pb2.RaftMemberStatus.REACHABLE
        return found

    def desire(self, role: str) -> None:
        self.node.spec.desired_role = ROLE[role]

    @property
    def desired(self) -> str:
        return NAME[self.node.spec.desired_role]

    @property
    def observed(self) -> str:
        return NAME[self.node.role]

    def issues(self) -> str:
        """The role of a certificate that is signed now."""
        return self.desired if self.old_ca else self.observed

    def admits(self) -> bool:
        """Whether a manager on the node may join the others."""
        return self.issues() == topics.MANAGER_ROLE


@dataclass
class Process:
    """A process of the node: its pid, 0 while it does not run, and the messages under way to it."""

    pid: int = 0
    inbox: dict[str, list[tuple[object, int]]] = field(default_factory=dict)


class World:
    """Everything, and a list of acts that could happen next."""

    def __init__(self, chance: random.Random, *, old_ca: bool = False) -> None:
        self.chance = chance
        self.swarm = Swarm(old_ca=old_ca)
        self.now = 1000.0
        self.pids = 100
        self.disk = self._certificate(topics.WORKER_ROLE)
        self.issued: str | None = None
        self.state_json: list[Peer] = []
        self.has_data = False
        self.erased = 0
        self.worker_since_data = False
        """Whether a worker's certificate lay on disk at any time since the manager's data was made."""
        self.session = True
        self.requests = 0
        self.disturbances = 0
        self.wake: float | None = None
        self.acts: list[tuple[str, Callable[[], None]]] = []
        self.retained: dict[str, tuple[object, int]] = {}
        self.program = Process()
        self.processes = {name: Process() for name in (topics.COORDINATOR, topics.RENEWER, topics.AGENT)}
        self.processes[topics.MANAGER] = self.program
        self.story: list[str] = []
        self._publish("process.manager", topics.Process("manager", "STOPPED"), 1)
        for name in (topics.RENEWER, topics.COORDINATOR, topics.AGENT):
            self.start(name)

    # -- the bus -----------------------------------------------------------------------------------

    def _publish(self, topic: str, body: object, pid: int) -> None:
        known = self.retained.get(topic)
        if known == (body, pid):
            return
        self.retained[topic] = (body, pid)
        for name, process in self.processes.items():
            if process.pid and topic in HEARS.get(name, ()):
                process.inbox.setdefault(topic, []).append((body, pid))

    def _subscribe(self, name: str) -> None:
        """A reader that starts gets the last values of all publishers that live."""
        inbox = self.processes[name].inbox = {}
        for topic in HEARS.get(name, ()):
            owner = OWNER[topic]
            if topic in self.retained and (owner == topics.SUPERVISOR or self.processes[owner].pid):
                inbox[topic] = [self.retained[topic]]

    def deliver(self, name: str, topic: str) -> None:
        """Hand over the next value, or a later one: a reader may miss what lies between, never the newest."""
        waiting = self.processes[name].inbox[topic]
        index = self.chance.randrange(len(waiting))
        body, pid = waiting[index]
        del waiting[: index + 1]
        self.story.append(f"{name} hears {topic} {getattr(body, 'state', '')}")
        if name == topics.COORDINATOR:
            self._coordinate(ordered.Heard(topic, body, pid))
            if topic == "process.manager":  # as the shell does
                self._coordinate(ordered.Data(self.has_data, self.erased > 0))
        elif name == topics.RENEWER:
            self._renew(self._understand(body, pid))
        elif isinstance(body, topics.Certificate) and body.role == topics.WORKER_ROLE:
            self._exit(ExitCode.ROLE_LOST)

    def _understand(self, body: object, pid: int) -> asked.Event:
        match body:
            case topics.Role():
                return asked.RoleSaid(body)
            case topics.NodeChanges():
                return asked.NodeChanged(body, "")
            case topics.Manager():
                return asked.ManagerSaid(body.state == "ready", epoch=pid)
            case topics.Remotes():
                return asked.RemotesSaid(body.managers)
        raise AssertionError(body)

    # -- processes ---------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        process = self.processes[name]
        if process.pid:
            return
        self.pids += 1
        process.pid = self.pids
        self._subscribe(name)
        if name == topics.COORDINATOR:
            self.machine = Machine(self.state_json)
            self._perform(self.machine.start())
            self._coordinate(ordered.Data(self.has_data, self.erased > 0))
        elif name == topics.RENEWER:
            self.renewer = Renewer(self.chance)
            self.wake = None
            self._act("renewer loads", process.pid, lambda: self._renew(asked.Loaded(self.disk)))
        elif name == topics.AGENT:
            self._agent_says()

    def kill(self, name: str) -> None:
        """SIGKILL; supervisord starts it again."""
        process = self.processes[name]
        if not process.pid:
            return
        self.disturbances += 1
        self.story.append(f"{name} is killed")
        if name == topics.MANAGER:
            self._exit(None)
            return
        process.pid = 0
        process.inbox = {}
        if name == topics.RENEWER:
            self.wake = None
        self.acts.append((f"{name} restarts", lambda: self.start(name)))

    def _act(self, words: str, pid: int, act: Callable[[], None]) -> None:
        """Something that a process is about to do; void if it dies first."""
        name = next(name for name, process in self.processes.items() if process.pid == pid)
        self.acts.append((words, lambda: act() if self.processes[name].pid == pid else None))

    # -- agent -------------------------------------------------------------------------------------

    def _agent_says(self) -> None:
        pid = self.processes[topics.AGENT].pid
        if not pid:
            return
        if not self.session:
            self._publish("agent", topics.Agent("waiting", why="connection refused"), pid)
            return
        node = self.swarm.node
        observed = "" if self.swarm.old_ca else self.swarm.observed
        changes = topics.NodeChanges(self.swarm.desired, observed, under=topics.Under(self.disk.fingerprint))
        self._publish("node.changes", changes, pid)
        listed = [topics.ManagerAddress(m.node_id, f"{m.node_id}:2377", 10) for m in self.swarm.members()]
        self._publish("managers", topics.Managers(tuple(listed)), pid)
        self._publish("agent", topics.Agent("ready", f"s{pid}", OTHER, f"{OTHER}:2377"), pid)
        assert node.id == NODE

    def cut(self, *, session: bool) -> None:
        """The agent loses its session, or gets one."""
        self.disturbances += 1
        self.session = session
        self._agent_says()

    # -- the swarm ---------------------------------------------------------------------------------

    def desire(self, role: str) -> None:
        self.disturbances += 1
        self.story.append(f"desired: {role}")
        self.swarm.desire(role)
        self.swarm_moves()

    def swarm_moves(self) -> None:
        """The role manager takes its next steps later, the agent hears of the node now or later."""
        self.acts.append(("role manager", self._role_manager))
        self.acts.append(("agent hears of the node", self._agent_says))

    def _role_manager(self) -> None:
        if self.swarm.old_ca:
            if self.swarm.desired == topics.WORKER_ROLE and self.swarm.member:
                self._removed()
            return
        match decide(NODE, self.swarm.node, self.swarm.members(), OTHER):
            case SetRole(_, role):
                self.swarm.node.role = role
            case RemoveMember():
                self._removed()
            case HandOver() | Hold() | None:
                return
        self.swarm_moves()

    def _removed(self) -> None:
        self.swarm.member = False
        self.story.append("removed from the managers")
        if self.program.pid:
            self._act("manager learns of its removal", self.program.pid, lambda: self._exit(ExitCode.REMOVED))

    # -- the manager program -----------------------------------------------------------------------

    def _say_program(self, state: str, code: int = -1, number: int = 0, *, expected: bool = True) -> None:
        body = topics.Process("manager", state, self.program.pid, code, number, expected)
        self._publish("process.manager", body, 1)

    def _start_program(self) -> None:
        if self.program.pid:
            return
        self.pids += 1
        self.program.pid = self.pids
        self._subscribe(topics.MANAGER)
        self._say_program("STARTING")
        self._say_program("RUNNING")
        self._act("manager boots", self.program.pid, self._boot)

    def _boot(self) -> None:
        if self.disk.role != topics.MANAGER_ROLE:
            self._exit(ExitCode.ROLE_LOST)
            return
        if not self.has_data:
            self.has_data, self.worker_since_data = True, False
        self._publish("manager", topics.Manager("starting"), self.program.pid)
        self._act("manager joins", self.program.pid, self._join)

    def _join(self) -> None:
        if not self.swarm.admits():
            self._exit(ExitCode.REMOVED)
            return
        self.swarm.member = True
        self._publish("manager", topics.Manager("ready"), self.program.pid)
        self.swarm_moves()

    def _exit(self, code: ExitCode | None) -> None:
        """End with `code`, None: by SIGKILL."""
        self.story.append(f"manager ends: {code.name if code is not None else 'SIGKILL'}")
        if code is not None:
            state = "removed" if code is ExitCode.REMOVED else "stopped"
            self._publish("manager", topics.Manager(state), self.program.pid)
        self.program.pid, self.program.inbox = 0, {}
        expected = code in INTENDED if code is not None else False
        self._say_program("EXITED", -1 if code is None else code, 9 if code is None else 0, expected=expected)
        if not expected:
            self.acts.append(("supervisord restarts the manager", self._restart_program))

    def _restart_program(self) -> None:
        known = self.retained["process.manager"][0]
        if isinstance(known, topics.Process) and known.state == "EXITED" and not known.expected:
            self._start_program()

    def _stop_program(self) -> None:
        """supervisord's answer to a stop: NOT_RUNNING at once, else the end comes later."""
        known = self.retained["process.manager"][0]
        if self.program.pid:
            self._say_program("STOPPING")
            self.program.pid, self.program.inbox = 0, {}
            self._say_program("STOPPED", ExitCode.DONE)
        elif isinstance(known, topics.Process) and known.state == "EXITED" and not known.expected:
            self._say_program("STOPPED")  # it was to be restarted
        elif self.processes[topics.COORDINATOR].pid:
            self._coordinate(ordered.NotRunning())

    # -- coordinator -------------------------------------------------------------------------------

    def _coordinate(self, event: ordered.Event) -> None:
        self._perform(self.machine.handle(event, self.now))

    def _perform(self, effects: Iterable[ordered.Effect]) -> None:
        pid = self.processes[topics.COORDINATOR].pid
        for effect in effects:
            match effect:
                case ordered.Publish(topic, body):
                    self._publish(topic, body, pid)
                case ordered.SavePeers(peers):
                    self.state_json = list(peers)
                case ordered.StartManager():
                    self._order("start", pid, self._start_program)
                case ordered.StopManager():
                    self._order("stop", pid, self._stop_program)
                case ordered.SetManagerDataAside():
                    self._set_aside()
                case ordered.DeleteErasedData():
                    assert self.machine.facts.agent is not None
                    assert self.machine.facts.agent.manager_id == OTHER
                    assert self.machine.facts.changes is not None
                    assert self.machine.facts.changes.under.fingerprint.startswith(topics.WORKER_ROLE)
                    self.erased = 0
                case ordered.Say(text):
                    self.story.append(text)

    def _order(self, verb: str, pid: int, act: Callable[[], None]) -> None:
        """Only the newest order counts, as in the coordinator's shell."""
        self.acts = [(words, kept) for words, kept in self.acts if not words.endswith("the manager on order")]
        self._act(f"supervisord: {verb} the manager on order", pid, act)

    def _set_aside(self) -> None:
        if self.program.pid:
            return  # the shell takes the manager's lock first
        assert self.has_data, "there is nothing to set aside"
        assert self.worker_since_data, "no worker's certificate since this data was made"
        changes = self.machine.facts.changes
        assert changes is not None
        assert changes.desired_role == topics.WORKER_ROLE
        self.has_data, self.erased = False, self.erased + 1

    # -- renewer -----------------------------------------------------------------------------------

    def _certificate(self, role: str) -> asked.Held:
        self.pids += 1
        return asked.Held(NODE, "swarm", role, int(START), int(START) + YEARS, f"{role}-{self.pids}", "root")

    def _renew(self, event: asked.Event) -> None:
        pid = self.processes[topics.RENEWER].pid
        moment = asked.Moment(START + self.now, self.now)
        for effect in self.renewer.handle(event, moment):
            match effect:
                case asked.Publish(certificate):
                    self._publish("certificate", certificate, pid)
                case asked.Request():
                    self.requests += 1
                    self.story.append(f"request {self.requests}: {effect.why}")
                    self._act("CA answers", pid, self._answer)
                case asked.Install():
                    expected = self.renewer._role.expected
                    assert expected in ("", self.issued), f"installs {self.issued}, {expected} was asked for"
                    self._act("renewer installs", pid, self._install)
                case asked.WakeAt(moment_):
                    self.wake = moment_

    def _answer(self) -> None:
        if self.swarm.failures:
            self.swarm.failures -= 1
            self._renew(asked.RequestFailed("connection refused"))
            return
        self.issued = self.swarm.issues()
        self._renew(asked.Obtained(self.issued))

    def _install(self) -> None:
        assert self.issued is not None
        self.disk = self._certificate(self.issued)
        self.worker_since_data |= self.disk.role == topics.WORKER_ROLE
        self.story.append(f"on disk: {self.disk.fingerprint}")
        # The agent opens its session anew, some time after it has heard of the certificate.
        self.acts.append(("agent hears of the node", self._agent_says))
        self._renew(asked.Installed(self.disk))

    # -- picking -----------------------------------------------------------------------------------

    def possible(self) -> list[Callable[[], None]]:
        """Everything that may happen next without time passing."""
        found: list[Callable[[], None]] = []
        for name, process in self.processes.items():
            for topic, waiting in process.inbox.items():
                if waiting and process.pid:
                    found.append(lambda name=name, topic=topic: self.deliver(name, topic))  # type: ignore[misc]
        found.extend(lambda entry=entry: self._do(entry) for entry in self.acts)  # type: ignore[misc]
        return found

    def _do(self, entry: tuple[str, Callable[[], None]]) -> None:
        self.acts.remove(entry)
        self.story.append(entry[0])
        entry[1]()

    def happen(self) -> bool:
        """One act, picked by chance; False if there is none."""
        possible = self.possible()
        if possible:
            self.chance.choice(possible)()
        return bool(possible)

    def timers(self) -> list[float]:
        due = [self.machine.deadline() if self.processes[topics.COORDINATOR].pid else None]
        due.append(self.wake if self.processes[topics.RENEWER].pid else None)
        return [when for when in due if when is not None]

    def pass_time(self, until: float) -> None:
        """Turn the clock; the timers that come due ring."""
        self.now = max(self.now, until)
        deadline = self.machine.deadline()
        if self.processes[topics.COORDINATOR].pid and deadline is not None and deadline <= self.now:
            self._coordinate(ordered.Tick())
        if self.processes[topics.RENEWER].pid and self.wake is not None and self.wake <= self.now:
            self.wake = None
            self._renew(asked.Due())

    def quiet(self) -> None:
        """Until nothing can happen without time passing."""
        for _ in range(5000):
            if not self.happen():
                return
        raise AssertionError(f"never at rest: {self.story[-60:]}")

    def settle(self, seconds: float) -> None:
        """Nothing disturbs any more: let that much time pass, and everything happen."""
        self.swarm.failures = 0
        self.swarm.others_reachable = True
        self.session = True
        self.swarm_moves()
        self.quiet()
        end = self.now + seconds
        while True:
            due = [when for when in self.timers() if when <= end]
            if not due:
                return
            self.pass_time(min(due))
            self.quiet()

    # -- what must be true -------------------------------------------------------------------------

    def check(self) -> None:
        """At rest: the certificate, the manager and the managers' list follow the last wish."""
        tail = "\n".join(self.story[-80:])
        desired = self.swarm.desired
        assert self.disk.role == desired, f"certificate {self.disk.role}, desired {desired}\n{tail}"
        assert bool(self.program.pid) == (desired == topics.MANAGER_ROLE), f"manager runs: {self.program.pid}\n{tail}"
        assert self.swarm.member == (desired == topics.MANAGER_ROLE), f"member: {self.swarm.member}\n{tail}"
        assert self.machine._role_body() == topics.Role(desired), f"{self.machine._role_body()}\n{tail}"
        if desired == topics.WORKER_ROLE:
            assert not self.has_data, f"the manager's data was kept\n{tail}"
            assert not self.erased, f"the data set aside was kept\n{tail}"
