"""Tasks under a real agent, a real workload supervisord and a scripted dispatcher."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from swarm.workload import STDOUT
from tests.integration.agent_node import ScriptedDispatcher, State, agent_node, alive, eventually, gone, serving, task
from tests.tools.authority import Authority


async def test_a_task_runs_is_stopped_and_is_removed_without_a_trace() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr) as node:
        await node.start_agent()
        said = await node.agent_says("ready")
        assert said.manager_addr == addr
        sleeper = task("/bin/sleep", "1000")
        dispatcher.assign(sleeper)
        status = await dispatcher.reached(sleeper.id, State.RUNNING)
        assert (status.message, status.err) == ("started", "")
        assert status.container.container_id == sleeper.id
        assert alive(status.container.pid)
        states = [s.state for s in dispatcher.statuses[sleeper.id]]
        assert states == sorted(states)

        dispatcher.desire(sleeper.id, State.SHUTDOWN)
        status = await dispatcher.reached(sleeper.id, State.SHUTDOWN)
        assert (status.state, status.message, status.err) == (State.SHUTDOWN, "shutdown", "")
        assert status.container.exit_code == 128 + signal.SIGTERM

        directory = node.paths.task(sleeper.id)
        assert directory.exists()
        dispatcher.remove(sleeper.id)
        await eventually(lambda: not directory.exists(), "the task's directory is gone")


async def test_ends_are_reported_in_words() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr) as node:
        await node.start_agent()
        await node.agent_says("ready")
        good, bad, killed, absent, refused = (
            task("/bin/sh", "-c", "echo hello $SWARMVISOR_SERVICE_NAME.$SWARMVISOR_TASK_SLOT"),
            task("/bin/sh", "-c", "exit 3"),
            task("/bin/sh", "-c", "kill -KILL $$"),
            task("/nonexistent/program"),
            task("/bin/true", hostname="elsewhere"),
        )
        dispatcher.assign(good, bad, killed, absent, refused)
        status = await dispatcher.reached(good.id, State.COMPLETE)
        assert (status.state, status.message, status.err) == (State.COMPLETE, "finished", "")
        assert (node.paths.task(good.id) / STDOUT).read_text() == "hello web.1\n"
        status = await dispatcher.reached(bad.id, State.COMPLETE)
        assert (status.state, status.message, status.err) == (State.FAILED, "started", "task: non-zero exit (3)")
        assert status.container.exit_code == 3
        status = await dispatcher.reached(killed.id, State.COMPLETE)
        assert status.err == "task: non-zero exit (137): ended by SIGKILL"
        status = await dispatcher.reached(absent.id, State.COMPLETE)
        assert (status.state, status.message) == (State.FAILED, "starting")
        assert "/nonexistent/program: No such file or directory" in status.err
        status = await dispatcher.reached(refused.id, State.COMPLETE)
        assert (status.state, status.message) == (State.REJECTED, "resolving controller failed")
        assert status.err == "hostname cannot be honoured: a process shares the host's name"


async def test_a_killed_agent_adopts_every_task_again_and_reports_what_happened_meanwhile() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr) as node:
        await node.start_agent()
        first = await node.agent_says("ready")
        staying, ending, stopping = (task("/bin/sleep", "1000") for _ in range(3))
        dispatcher.assign(staying, ending, stopping)
        pids = {
            one.id: (await dispatcher.reached(one.id, State.RUNNING)).container.pid
            for one in (staying, ending, stopping)
        }
        # Killed before that, it would have to report them again: at least once.
        await node.acknowledgements_stored()
        await node.kill_agent()
        counts = {one: len(statuses) for one, statuses in dispatcher.statuses.items()}
        os.kill(pids[ending.id], signal.SIGTERM)
        await gone(pids[ending.id])
        stopped = dispatcher.tasks[stopping.id]
        stopped.desired_state = State.SHUTDOWN

        await node.start_agent()
        again = await node.agent_says("ready")
        assert again.session_id == first.session_id
        assert dispatcher.requests[-1].session_id == first.session_id
        status = await dispatcher.reached(ending.id, State.COMPLETE)
        assert (status.state, status.err) == (State.FAILED, "task: non-zero exit (143): ended by SIGTERM")
        status = await dispatcher.reached(stopping.id, State.COMPLETE)
        assert status.state == State.SHUTDOWN
        assert alive(pids[staying.id])
        assert len(dispatcher.statuses[staying.id]) == counts[staying.id], "reported though acknowledged before"


async def test_a_dead_workload_supervisor_fails_its_tasks_and_later_tasks_run_again() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr) as node:
        await node.start_agent()
        await node.agent_says("ready")
        sleeper = task("/bin/sh", "-c", "sleep 1000 & exec sleep 1000")
        dispatcher.assign(sleeper)
        pid = (await dispatcher.reached(sleeper.id, State.RUNNING)).container.pid
        os.kill(node.workload_pid(), signal.SIGKILL)
        status = await dispatcher.reached(sleeper.id, State.COMPLETE)
        assert (status.state, status.err) == (State.FAILED, "workload supervisor ended")
        assert not alive(pid)
        later = task("/bin/sleep", "1000")
        dispatcher.assign(later)
        assert (await dispatcher.reached(later.id, State.RUNNING)).state == State.RUNNING


async def test_agent_and_workload_killed_together_fail_the_tasks_once() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr) as node:
        await node.start_agent()
        await node.agent_says("ready")
        sleeper = task("/bin/sleep", "1000")
        dispatcher.assign(sleeper)
        await dispatcher.reached(sleeper.id, State.RUNNING)
        workload = node.workload_pid()
        await node.kill_agent()
        os.kill(workload, signal.SIGKILL)
        await node.start_agent()
        status = await dispatcher.reached(sleeper.id, State.COMPLETE)
        assert (status.state, status.err) == (State.FAILED, "workload supervisor ended")


async def test_a_lost_database_neither_doubles_assigned_tasks_nor_keeps_strays() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr) as node:
        await node.start_agent()
        await node.agent_says("ready")
        kept, dropped = task("/bin/sleep", "1000"), task("/bin/sleep", "1000")
        dispatcher.assign(kept, dropped)
        pids = {one.id: (await dispatcher.reached(one.id, State.RUNNING)).container.pid for one in (kept, dropped)}
        await node.kill_agent()
        for name in os.listdir(node.paths.worker):
            os.unlink(node.paths.worker / name)
        dispatcher.tasks[kept.id].status.CopyFrom(dispatcher.statuses[kept.id][-1])
        del dispatcher.tasks[dropped.id]
        await node.start_agent()
        await node.agent_says("ready")
        await gone(pids[dropped.id])
        await eventually(lambda: not node.paths.task(dropped.id).exists(), "the stray's directory is gone")
        assert alive(pids[kept.id])
        dispatcher.desire(kept.id, State.SHUTDOWN)
        assert (await dispatcher.reached(kept.id, State.SHUTDOWN)).state == State.SHUTDOWN


async def test_sigterm_ends_the_agent_and_touches_no_task() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    async with serving(authority, dispatcher) as addr, agent_node(authority, addr) as node:
        await node.start_agent()
        await node.agent_says("ready")
        sleeper = task("/bin/sleep", "1000")
        dispatcher.assign(sleeper)
        pid = (await dispatcher.reached(sleeper.id, State.RUNNING)).container.pid
        started = time.monotonic()
        assert await node.kill_agent(signal.SIGTERM) == 0
        assert time.monotonic() - started < 5
        assert alive(pid)
        assert Path(f"/proc/{pid}").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_capabilities_and_privileges_are_what_the_task_asked_for() -> None:
    authority, dispatcher = Authority(), ScriptedDispatcher()
    script = "id -un; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; touch written"

    def seen(task_id: str) -> list[str]:
        return (node.paths.task(task_id) / STDOUT).read_text().split()[:1] + [
            line.split()[1] for line in (node.paths.task(task_id) / STDOUT).read_text().splitlines()[1:]
        ]

    async with serving(authority, dispatcher) as addr, agent_node(authority, addr) as node:
        await node.start_agent()
        await node.agent_says("ready")
        bound = task("/bin/sh", "-c", script, capability_add=["CAP_NET_BIND_SERVICE"], capability_drop=["ALL"])
        root = task("/bin/sh", "-c", script, capability_drop=["ALL"], user="root")
        plain = task("/bin/sh", "-c", script)
        plain.spec.container.privileges.no_new_privileges = True
        dispatcher.assign(bound, root, plain)
        for one in (bound, root, plain):
            status = await dispatcher.reached(one.id, State.COMPLETE)
            assert (status.state, status.err) == (State.COMPLETE, "")
        only_bind, nothing = f"{1 << 10:016x}", f"{0:016x}"
        assert seen(bound.id) == ["nobody", only_bind, only_bind, "0"]
        assert seen(root.id) == ["root", nothing, nothing, "0"]
        name, effective, _, no_new = seen(plain.id)
        assert (name, effective, no_new) == ("nobody", nothing, "1")
