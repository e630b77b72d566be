"""What Docker sends in a service's spec: honoured, or rejected with a sentence; never ignored."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import pytest

from swarm.tmpfs import tasks_in_memory
from tests.e2e.host import alive, eventually
from tests.interop.conftest import Member
from tests.interop.dockerd import Dockerd

pytestmark = pytest.mark.usefixtures("member")

ONCE = ("--restart-condition", "none")

REJECTED = {
    "--mount type=bind,src=/tmp,dst=/mnt": "mounts cannot be honoured: a process uses the host's own files as they are",
    "--mount type=tmpfs,dst=/mnt": "mounts cannot be honoured",
    "--publish mode=host,target=80,published=18080": "endpoint.ports cannot be honoured: this release publishes no",
    "--tty": "tty cannot be honoured: tasks have no terminal",
    "--hostname other": "hostname cannot be honoured: a process shares the host's name",
    "--host db:192.0.2.1": "hosts cannot be honoured: a process uses the host's own /etc/hosts",
    "--dns 192.0.2.1": "dns_config cannot be honoured: a process uses the host's own resolver",
    "--health-cmd true": "healthcheck cannot be honoured: this release runs no health checks",
    "--read-only": "read_only cannot be honoured",
    "--init": "init cannot be honoured: a process is reaped by the node's own supervisor",
    "--log-driver json-file": "log_driver cannot be honoured: the output of tasks goes to files of the node",
    "--sysctl net.ipv4.ip_forward=1": "sysctls cannot be honoured: a process shares the host's kernel settings",
    "--isolation hyperv": "isolation cannot be honoured: that is a Windows setting",
    "--env A={{.Node.Hostname}}": "env 'A' cannot be honoured: this release expands no templates",
    "--user no-such-user": "user 'no-such-user' does not exist on this node",
    "--workdir here": "dir 'here' is not an absolute path",
    "--stop-signal SIGNONE": "stop_signal 'SIGNONE' is not a signal of this system",
}


def why(dockerd: Dockerd, service: str) -> str:
    status = dockerd.ended(service)["Status"]
    assert status["State"] == "rejected", status
    return str(status["Err"])


def test_each_thing_that_cannot_be_had_is_rejected_by_its_name(dockerd: Dockerd) -> None:
    services = {f"rejected-{number}": options for number, options in enumerate(REJECTED)}
    try:
        for name, options in services.items():
            dockerd.service(name, "true", options=(*ONCE, *options.split(" ", 1)))
        said = {options: why(dockerd, name) for name, options in services.items()}
    finally:
        dockerd.run("service", "rm", *services)
    assert {options: text[: len(REJECTED[options])] for options, text in said.items()} == REJECTED


def test_several_reasons_are_all_told(dockerd: Dockerd, service: str) -> None:
    dockerd.service(service, "true", options=(*ONCE, "--tty", "--hostname", "h"))
    said = why(dockerd, service)
    assert "hostname cannot be honoured" in said
    assert "tty cannot be honoured" in said


def test_an_unknown_image_is_rejected_with_what_there_is_instead(dockerd: Dockerd, service: str) -> None:
    dockerd.service(service, image="nginx:1.27", options=ONCE)
    said = why(dockerd, service)
    assert said.startswith("image 'nginx:1.27' is not installed on this node")
    assert "the image `host` runs a command of the host itself" in said


def test_docker_keeps_tasks_on_overlay_networks_away_and_says_so(dockerd: Dockerd, service: str) -> None:
    dockerd.docker("network", "create", "--driver", "overlay", f"{service[:30].strip('-')}-net")
    try:
        dockerd.service(service, "true", options=(*ONCE, "--network", f"{service[:30].strip('-')}-net"))
        eventually(
            lambda: "missing plugin on 1 node" in dockerd.tasks(service)[0]["Status"].get("Err", ""),
            what="the scheduler's reason",
        )
        dockerd.docker("service", "rm", service)
    finally:
        eventually(
            lambda: dockerd.run("network", "rm", f"{service[:30].strip('-')}-net").returncode == 0,
            what="the network is removed",
        )


def test_the_host_network_is_where_processes_are(dockerd: Dockerd, service: str) -> None:
    dockerd.service(service, "sleep", "1000", options=("--network", "host"))
    dockerd.running(service, 1)


def test_everything_that_a_process_can_be_given_is_given(dockerd: Dockerd, service: str) -> None:
    options = shlex.split(
        "--env GREETING=hello --label a=b --container-label c=d --limit-pids 50 --limit-memory 200m --limit-cpu 1"
        " --reserve-memory 4m --reserve-cpu 0.01 --generic-resource ssd=1 --stop-signal SIGINT --stop-grace-period 3s"
        " --user daemon --workdir / --no-healthcheck --ulimit nofile=123:456 --cap-drop ALL --update-parallelism 1"
        " --update-order start-first --rollback-monitor 1s --endpoint-mode dnsrr --replicas-max-per-node 2"
    )
    script = (
        "id -un; pwd; echo $GREETING $DOCKER_RESOURCE_SSD; ulimit -n; trap 'echo bye; exit 0' INT; sleep 1000 & wait"
    )
    dockerd.service(service, "sh", "-c", script, options=tuple(options))
    (task,) = dockerd.running(service, 1)
    process = task["Status"]["ContainerStatus"]["PID"]
    eventually(
        lambda: dockerd.docker("service", "logs", "--raw", service).split("\n") == ["daemon", "/", "hello 1", "123"],
        what="the task sees what it was given",
    )
    capabilities = next(
        line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("CapBnd")
    )
    assert int(capabilities.split()[1], 16) == 0
    dockerd.docker("service", "scale", "--detach", f"{service}=0")
    eventually(lambda: not alive(process), what="the process ends by its own signal")
    ended = json.loads(dockerd.docker("inspect", "--type", "task", task["ID"]))[0]
    assert ended["Status"]["ContainerStatus"]["ExitCode"] == 0


def test_secrets_and_configs_are_files_in_memory_for_the_task_alone(
    dockerd: Dockerd, member: Member, service: str
) -> None:
    secret, config = f"s-{service[:30].strip('-')}", f"c-{service[:30].strip('-')}"
    dockerd.docker("secret", "create", secret, "-", stdin="hunter2")
    dockerd.docker("config", "create", config, "-", stdin="a = 1\n")
    place = tasks_in_memory(member.host.paths)
    try:
        script = (
            "cd $SWARMVISOR_SECRETS_DIR; cat pw db/pw | sha256sum; stat -c '%n %a %u %g' pw db/pw;"
            " cd $SWARMVISOR_CONFIGS_DIR; cat app.conf; stat -c '%n %a' app.conf; sleep 1000"
        )
        dockerd.service(
            service, "sh", "-c", script,
            options=(
                "--user", "daemon",
                "--secret", f"source={secret},target=pw,mode=0400,uid=1,gid=1",
                "--secret", f"source={secret},target=db/pw",
                "--config", f"source={config},target=app.conf,mode=0440,uid=1",
            ),
        )  # fmt: skip
        (task,) = dockerd.running(service, 1)
        expected = [
            f"{hashlib.sha256(b'hunter2' * 2).hexdigest()}  -",
            "pw 400 1 1",
            "db/pw 444 0 0",
            "a = 1",
            "app.conf 440",
        ]
        eventually(
            lambda: dockerd.docker("service", "logs", "--raw", service).splitlines() == expected,
            what="the task reads its files",
        )
        directory = place / task["ID"]
        assert (directory.stat().st_mode & 0o777, directory.stat().st_uid) == (0o700, 1)
        dockerd.docker("service", "scale", "--detach", f"{service}=0")
        eventually(lambda: not directory.exists(), what="the files go with the task")
        on_disk = b"".join(f.read_bytes() for f in member.host.paths.state.rglob("*") if f.is_file())
        assert b"hunter2" not in on_disk
    finally:
        dockerd.run("service", "rm", service)
        dockerd.docker("secret", "rm", secret)
        dockerd.docker("config", "rm", config)


def test_the_default_owner_of_a_secret_is_who_runs_the_task(dockerd: Dockerd, service: str) -> None:
    secret = f"s-{service[:30].strip('-')}"
    dockerd.docker("secret", "create", secret, "-", stdin="hunter2\n")
    try:
        options = (*ONCE, "--secret", f"source={secret},target=pw,mode=0400")
        dockerd.service(service, "sh", "-c", "id -un; cat $SWARMVISOR_SECRETS_DIR/pw", options=options)
        dockerd.ended(service)
        assert dockerd.docker("service", "logs", "--raw", service).split() == ["nobody", "hunter2"]
    finally:
        dockerd.run("service", "rm", service)
        dockerd.docker("secret", "rm", secret)


@pytest.mark.parametrize("target", ["/etc/app.conf", "../app.conf"])
def test_a_target_outside_the_tasks_own_directory_is_rejected(dockerd: Dockerd, service: str, target: str) -> None:
    config = f"c-{service[:30].strip('-')}"
    dockerd.docker("config", "create", config, "-", stdin="x")
    try:
        dockerd.service(service, "true", options=(*ONCE, "--config", f"source={config},target={target}"))
        assert why(dockerd, service).startswith(f"config '{config}': target '{target}' ")
    finally:
        dockerd.run("service", "rm", service)
        dockerd.docker("config", "rm", config)
