"""Figures of a whole node: bootstrap, tasks, recovery, memory, idle CPU. Real processes, real interfaces."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ipc.bus import Bus
from procs.cli.control import Control, connect
from swarm.api import control_pb2 as api
from swarm.api import objects_pb2, specs_pb2, types_pb2
from tests.e2e.host import PROCESSES, Host, new_host

IDLE_SECONDS = 20.0
TICK = 1 / os.sysconf("SC_CLK_TCK")


@contextmanager
def fresh_node() -> Iterator[Host]:
    for host in new_host():
        host.init()
        yield host


def bootstrap(runs: int) -> list[float]:
    """Seconds from `swarmvisor init` to its return, which is when the node is ready and leads."""
    found: list[float] = []
    for _ in range(runs):
        for host in new_host():
            started = time.monotonic()
            host.init()
            found.append(time.monotonic() - started)
    return found


def service_spec(name: str, replicas: int) -> specs_pb2.ServiceSpec:
    spec = specs_pb2.ServiceSpec()
    spec.annotations.name = name
    spec.replicated.replicas = replicas
    spec.task.container.image = "host"
    spec.task.container.command.extend(["/bin/sleep"])
    spec.task.container.args.extend(["100000"])
    spec.task.container.stop_grace_period.FromSeconds(2)
    spec.task.restart.condition = types_pb2.RestartPolicy.ANY
    spec.task.restart.delay.FromMilliseconds(1)
    return spec


def until(look: Callable[[], bool], *, timeout: float = 120.0, interval: float = 0.004) -> float:
    """Seconds until `look` is true."""
    started = time.monotonic()
    while not look():
        if time.monotonic() - started > timeout:
            raise TimeoutError("the node did not get there")
        time.sleep(interval)
    return time.monotonic() - started


def running(control: Control, service_id: str) -> int:
    request = api.ListServiceStatusesRequest(services=[service_id])
    return int(control.call("ListServiceStatuses", request).statuses[0].running_tasks)


def create(control: Control, name: str, replicas: int) -> tuple[objects_pb2.Service, float]:
    """The service, and the seconds from the call to the last task RUNNING in the manager's store."""
    started = time.monotonic()
    service = control.call("CreateService", api.CreateServiceRequest(spec=service_spec(name, replicas))).service
    until(lambda: running(control, service.id) == replicas, interval=0.002 if replicas < 10 else 0.02)
    return service, time.monotonic() - started


def remove(control: Control, service: objects_pb2.Service) -> float:
    """Seconds until nothing of the service is left."""
    started = time.monotonic()
    control.call("RemoveService", api.RemoveServiceRequest(service_id=service.id))
    until(lambda: not control.tasks(service_ids=[service.id]), interval=0.02)
    return time.monotonic() - started


def one_task(control: Control, runs: int) -> list[float]:
    found: list[float] = []
    for run in range(runs):
        service, seconds = create(control, f"one{run}", 1)
        found.append(seconds)
        remove(control, service)
    return found


def replaced(control: Control, runs: int) -> list[float]:
    """Seconds from the kill of a task to its replacement RUNNING (restart delay 1 ms)."""
    service, _ = create(control, "victim", 1)
    found: list[float] = []
    for _ in range(runs):
        [before] = [t for t in control.tasks(service_ids=[service.id]) if t.status.state == types_pb2.RUNNING]
        started = time.monotonic()
        os.kill(before.status.container.pid, signal.SIGKILL)

        def back(old: str = before.id) -> bool:
            tasks = control.tasks(service_ids=[service.id])
            return any(t.id != old and t.status.state == types_pb2.RUNNING for t in tasks)

        until(back)
        found.append(time.monotonic() - started)
    remove(control, service)
    return found


def agent_back(host: Host, runs: int) -> list[float]:
    """Seconds from the kill of the agent to its session being ready again, as said on the bus."""
    found: list[float] = []
    for _ in range(runs):
        with Bus(host.paths.bus, None, ["agent", "process.agent"]) as bus:
            # Killed within its first second it would count as a failed start, and be kept waiting for that.
            while (process := bus.last("process.agent")) is None or process.body.state != "RUNNING":
                bus.poll(5)
            started = time.monotonic()
            old = host.kill("agent")
            deadline = started + 30
            while time.monotonic() < deadline:
                bus.poll(deadline - time.monotonic())
                value = bus.last("agent")
                if value is not None and value.pid != old and value.body.state == "ready":
                    break
            else:
                raise TimeoutError("the agent did not come back")
            found.append(time.monotonic() - started)
    return found


def pss(pid: int) -> float:
    """Proportional share of memory, MiB."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss of {pid}")


def cpu(pid: int) -> float:
    """Seconds of CPU used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def sizes(host: Host) -> list[tuple[str, float, float]]:
    """Name, PSS in MiB and idle CPU in percent of a core, of every process of the node."""
    pids = {name: host.pid(name) for name in ("supervisord", *PROCESSES, "workload")}
    pids = {name: pid for name, pid in pids.items() if pid}
    before = {name: cpu(pid) for name, pid in pids.items()}
    time.sleep(IDLE_SECONDS)
    return [(name, pss(pid), 100 * (cpu(pid) - before[name]) / IDLE_SECONDS) for name, pid in pids.items()]


def middle(values: list[float]) -> str:
    """Median and extremes, as in peer-figures."""
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"


def many(control: Control, count: int) -> tuple[float, float]:
    service, up = create(control, f"many{count}", count)
    return up, remove(control, service)


def scale(control: Control) -> float:
    """Seconds from the call that scales 1 → 50 to all RUNNING."""
    service, _ = create(control, "scaled", 1)
    spec = service_spec("scaled", 50)
    started = time.monotonic()
    request = api.UpdateServiceRequest(service_id=service.id, service_version=service.meta.version, spec=spec)
    control.call("UpdateService", request)
    until(lambda: running(control, service.id) == 50, interval=0.01)
    seconds = time.monotonic() - started
    remove(control, service)
    return seconds


def report() -> Iterator[tuple[str, str, str, str]]:
    """Rows: what, ours, the peers' figure, our aim (shared/reference/peer-figures.md)."""
    yield "bootstrap: init → ready and leader, s", middle(bootstrap(5)), "0.21 / 0.67", "≤ 0.7"
    with fresh_node() as host, connect(host.paths) as control:
        yield "create 1 → RUNNING, s", middle(one_task(control, 10)), "0.37 / 0.35", "≤ 0.15"
        yield "scale 1 → 50, all RUNNING, s", f"{scale(control):.2f}", "3.35 / 3.18", "≤ 0.8"
        for count, peers, aim in ((100, "5.62 / –", "≤ 1.5"), (500, "–", "–"), (1000, "–", "–")):
            up, down = many(control, count)
            yield f"{count} tasks at once → last RUNNING, s", f"{up:.2f}", peers, aim
            gone = ("4.3 / 4.1", "≤ 1.5") if count == 100 else ("–", "–")
            yield f"remove {count}, nothing left, s", f"{down:.2f}", *gone
        yield "killed task → replaced (delay 1 ms), s", middle(replaced(control, 10)), "–", "–"
        yield "agent killed → ready again, s", middle(agent_back(host, 5)), "0.14 / 0.24", "≤ 0.5"
    with fresh_node() as host, connect(host.paths) as control:
        create(control, "idle", 1)
        rows = sizes(host)
        for name, memory, load in rows:
            yield f"{name}: PSS MiB, idle CPU %", f"{memory:.1f}, {load:.2f}", "", ""
        total, load = sum(r[1] for r in rows), sum(r[2] for r in rows)
        yield "whole manager node: PSS MiB, idle CPU %", f"{total:.1f}, {load:.2f}", "41+engine / 125–131", "≤ 160, –"
        worker = [row for row in rows if row[0] != "manager"]
        total, load = sum(r[1] for r in worker), sum(r[2] for r in worker)
        yield "the same without the manager", f"{total:.1f}, {load:.2f}", "33+engine / 117–121, 0.7", "≤ 117, ≤ 0.7"
