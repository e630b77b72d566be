from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, ClassVar

import pytest

from procs.agent.executor import Executor, Unresolvable, task_name
from procs.agent.users import User, Users
from swarm.api import objects_pb2, specs_pb2, types_pb2
from swarm.errors import BadInput
from swarm.nodeconfig import NodeConfig


class KnownUsers(Users):
    """Users of a host that is not this one."""

    table: ClassVar[dict[str, User]] = {
        "nobody": User("nobody", "/nonexistent", 65534, 65534, (65534,)),
        "root": User("root", "/root", 0, 0, (0,)),
        "me": User("me", "/home/me", 1000, 1000, (1000,)),
        "app": User("app", "/srv/app", 500, 500, (500, 600)),
    }

    def current(self, uid: int) -> User:
        return next(user for user in self.table.values() if user.uid == uid)

    def find(self, text: str, more_groups: Any = ()) -> User:
        if text not in self.table:
            raise BadInput(f"user {text!r} does not exist on this node")
        user = self.table[text]
        return User(user.name, user.home, user.uid, user.gid, (*user.groups, *map(int, more_groups)))


def executor(tmp_path: Path, *, euid: int = 0, **config: Any) -> Executor:
    return Executor(state=tmp_path, config=NodeConfig(**config), node_id=lambda: "node1", users=KnownUsers(), euid=euid)


def task(**container: Any) -> objects_pb2.Task:
    made = objects_pb2.Task(id="t1", service_id="s1", slot=3)
    made.service_annotations.name = "web"
    made.spec.container.image = "host"
    made.spec.container.command.append("/bin/app")
    for name, value in container.items():
        field = getattr(made.spec.container, name)
        if isinstance(value, list):
            del field[:]
            field.extend(value)
        elif hasattr(field, "CopyFrom"):
            field.CopyFrom(value)
        else:
            setattr(made.spec.container, name, value)
    return made


def refusal(one: Executor, of: objects_pb2.Task) -> str:
    with pytest.raises(Unresolvable) as caught:
        one.resolve(of)
    return caught.value.describe()


def test_command_and_args_make_the_argv_and_all_that_is_unset_gets_its_default(tmp_path: Path) -> None:
    spec = executor(tmp_path).resolve(task(args=["-v", "50%"])).spec
    assert spec.argv == ["/bin/app", "-v", "50%"]
    assert (spec.uid, spec.gid, spec.groups) == (65534, 65534, [65534])
    assert (spec.cwd, spec.stop_signal, spec.stop_grace) == ("", signal.SIGTERM, 10.0)
    assert (spec.memory_limit, spec.nano_cpus_limit, spec.pids_limit, spec.rlimits, spec.wrapper) == (0, 0, 0, {}, [])
    assert spec.env == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/nonexistent",
        "USER": "nobody",
        "LOGNAME": "nobody",
        "SWARMVISOR_TASK_ID": "t1",
        "SWARMVISOR_TASK_NAME": "web.3.t1",
        "SWARMVISOR_TASK_SLOT": "3",
        "SWARMVISOR_SERVICE_ID": "s1",
        "SWARMVISOR_SERVICE_NAME": "web",
        "SWARMVISOR_NODE_ID": "node1",
    }


def test_the_vxlan_port_is_kept_while_it_can_be_one(tmp_path: Path) -> None:
    one = executor(tmp_path)
    for port in (0, 1024, 49151, 4790):
        one.configure(vxlan_port=port)
        assert one.vxlan_port == port
    for wrong in (1, 1023, 49152, 70000):
        with pytest.raises(BadInput, match=rf"VXLAN UDP port {wrong} is not in the range 1024 to 49151; 4790 stays"):
            one.configure(vxlan_port=wrong)
    assert one.vxlan_port == 4790


def test_what_the_task_says_is_taken_over(tmp_path: Path) -> None:
    given = task(
        env=["A=1", "B=x=y", "HOME=/tmp", "USER"],
        dir="/srv",
        user="app",
        groups=["700"],
        stop_signal="int",
        pidsLimit=9,
        oom_score_adj=-5,
        ulimits=[specs_pb2.ContainerSpec.Ulimit(name="nofile", soft=10, hard=20)],
    )
    given.spec.container.stop_grace_period.FromMilliseconds(1500)
    given.spec.resources.limits.memory_bytes = 1 << 20
    given.spec.resources.limits.nano_cpus = 5 * 10**8
    given.assigned_generic_resources.add().named_resource_spec.CopyFrom(
        types_pb2.NamedGenericResource(kind="gpu", value="g1")
    )
    given.assigned_generic_resources.add().named_resource_spec.CopyFrom(
        types_pb2.NamedGenericResource(kind="gpu", value="g2")
    )
    given.assigned_generic_resources.add().discrete_resource_spec.CopyFrom(
        types_pb2.DiscreteGenericResource(kind="apple", value=3)
    )
    spec = executor(tmp_path).resolve(given).spec
    assert (spec.cwd, spec.uid, spec.groups, spec.stop_signal, spec.stop_grace) == (
        "/srv",
        500,
        [500, 600, 700],
        signal.SIGINT,
        1.5,
    )
    assert (spec.memory_limit, spec.nano_cpus_limit, spec.pids_limit, spec.oom_score_adj) == (1 << 20, 5 * 10**8, 9, -5)
    assert spec.rlimits == {"nofile": [10, 20]}
    assert (spec.env["A"], spec.env["B"], spec.env["HOME"]) == ("1", "x=y", "/tmp")
    assert "USER" not in spec.env
    assert (spec.env["DOCKER_RESOURCE_GPU"], spec.env["DOCKER_RESOURCE_APPLE"]) == ("g1,g2", "3")


@pytest.mark.parametrize("image", ["host", "host:latest", "host:2024.1", "host@sha256:00", "host:x@sha256:00"])
def test_the_image_host_is_the_host_whatever_its_tag(tmp_path: Path, image: str) -> None:
    assert executor(tmp_path).resolve(task(image=image)).spec.argv == ["/bin/app"]


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("", "image required"),
        ("nginx:1.25", "image 'nginx:1.25' is not installed on this node: there is no bundles/nginx:1.25"),
        ("nginx", "there is no bundles/nginx in its state directory"),
        ("docker.io/library/nginx", "cannot be run: this node runs `host` and installed bundles"),
        ("../../etc", "cannot be run"),
        ("web@sha256:00", "bundles have no digests"),
    ],
)
def test_an_image_that_is_not_here_is_refused_with_its_reason(tmp_path: Path, image: str, why: str) -> None:
    assert why in refusal(executor(tmp_path), task(image=image))


def bundle(at: Path) -> Path:
    at.mkdir(parents=True)
    (at / "command").write_text("#!/bin/sh\n")
    (at / "command").chmod(0o755)
    return at


def test_a_bundle_runs_its_command_in_its_directory(tmp_path: Path) -> None:
    home = bundle(tmp_path / "elsewhere" / "web")
    state = tmp_path / "state"
    (state / "bundles").mkdir(parents=True)
    (state / "bundles" / "web").symlink_to(home)
    one = executor(state)
    spec = one.resolve(task(image="web:latest", command=[], args=["--port", "1"])).spec
    assert spec.argv == [str(home / "command"), "--port", "1"]
    assert spec.cwd == str(home)
    assert one.resolve(task(image="web")).spec.argv == ["/bin/app"]
    assert one.resolve(task(image="web", dir="/srv")).spec.cwd == "/srv"
    (home / "command").chmod(0o644)
    if os.geteuid() != 0 or not os.access(home / "command", os.X_OK):
        assert "no executable file `command`" in refusal(one, task(image="web"))


def test_a_bundle_that_its_user_cannot_enter_is_refused(tmp_path: Path) -> None:
    bundle(tmp_path / "bundles" / "web")
    assert "cannot be run as user nobody" in refusal(executor(tmp_path), task(image="web"))
    assert executor(tmp_path).resolve(task(image="web", user="root")).spec.uid == 0
    assert executor(tmp_path, euid=1000).resolve(task(image="web")).spec.uid == -1


def test_a_node_without_root_runs_tasks_as_itself_and_nobody_else(tmp_path: Path) -> None:
    one = executor(tmp_path, euid=1000)
    for user in ("", "me"):
        spec = one.resolve(task(user=user)).spec
        assert (spec.uid, spec.gid, spec.groups) == (-1, -1, [])
        assert spec.env["USER"] == "me"
    assert "this node does not run as root" in refusal(one, task(user="app"))
    assert "groups cannot be honoured" in refusal(one, task(groups=["700"]))
    assert "capabilities cannot be honoured" in refusal(one, task(capability_add=["NET_ADMIN"]))
    assert "oom_score_adj -1 cannot be honoured" in refusal(one, task(oom_score_adj=-1))


def test_root_is_explicit_and_can_be_forbidden(tmp_path: Path) -> None:
    assert executor(tmp_path).resolve(task(user="root")).spec.uid == 0
    assert "allow_root_tasks is false" in refusal(executor(tmp_path, allow_root_tasks=False), task(user="root"))
    assert executor(tmp_path, workload_user="app").resolve(task()).spec.uid == 500


def test_an_unknown_user_or_workload_user_is_refused(tmp_path: Path) -> None:
    assert refusal(executor(tmp_path), task(user="ghost")) == "user 'ghost' does not exist on this node"
    assert "'ghost' does not exist" in refusal(executor(tmp_path, workload_user="ghost"), task())


def test_no_new_privileges_alone_keeps_the_user_with_the_workload(tmp_path: Path) -> None:
    given = task()
    given.spec.container.privileges.no_new_privileges = True
    resolved = executor(tmp_path).resolve(given)
    assert resolved.spec.wrapper[1:] == ["--no-new-privs", "--"]
    assert (resolved.spec.uid, resolved.work_owner) == (65534, None)


def test_capabilities_of_a_plain_user_are_given_by_setpriv_which_then_changes_the_user(tmp_path: Path) -> None:
    resolved = executor(tmp_path).resolve(task(capability_add=["CAP_NET_BIND_SERVICE"], capability_drop=["ALL"]))
    wrapper = " ".join(resolved.spec.wrapper)
    assert "--bounding-set -all,+net_bind_service" in wrapper
    assert "--ambient-caps -all,+net_bind_service" in wrapper
    assert "--reuid 65534 --regid 65534 --groups 65534 --pdeathsig KILL" in wrapper
    assert (resolved.spec.uid, resolved.work_owner) == (-1, (65534, 65534))


def test_capabilities_of_root_only_shrink(tmp_path: Path) -> None:
    wrapper = executor(tmp_path).resolve(task(user="root", capability_drop=["NET_RAW"])).spec.wrapper
    assert wrapper[1:] == ["--bounding-set", "-net_raw", "--inh-caps", "-all", "--"]


def healthcheck(*test: str) -> types_pb2.HealthConfig:
    return types_pb2.HealthConfig(test=test)


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("hostname", "h", "hostname"),
        ("tty", True, "tty"),
        ("open_stdin", True, "open_stdin"),
        ("read_only", True, "read_only"),
        ("mounts", [types_pb2.Mount(source="/a", target="/b")], "mounts"),
        ("hosts", ["10.0.0.1 db"], "hosts"),
        ("dns_config", specs_pb2.ContainerSpec.DNSConfig(nameservers=["192.0.2.1"]), "dns_config"),
        ("healthcheck", healthcheck("CMD", "true"), "healthcheck"),
        ("isolation", specs_pb2.ContainerSpec.ISOLATION_HYPERV, "isolation"),
        ("pull_options", specs_pb2.ContainerSpec.PullOptions(registry_auth="x"), "pull_options.registry_auth"),
        ("env", ["A={{.Task.Slot}}"], "env 'A'"),
    ],
)
def test_what_cannot_be_honoured_is_named_with_its_reason(tmp_path: Path, field: str, value: Any, name: str) -> None:
    why = refusal(executor(tmp_path), task(**{field: value}))
    assert why.startswith(f"{name} cannot be honoured: ")
    assert len(why) > len(f"{name} cannot be honoured: ")


def test_what_the_task_around_the_container_asks_for_is_refused_too(tmp_path: Path) -> None:
    given = task()
    given.spec.container.init.value = True
    given.spec.container.sysctls["a"] = "b"
    given.spec.container.privileges.credential_spec.file = "x"
    given.spec.container.privileges.selinux_context.user = "x"
    given.spec.container.privileges.seccomp.profile = b"{}"
    given.networks.add()
    given.endpoint.ports.add()
    given.volumes.add()
    given.spec.resource_references.add(resource_type=types_pb2.VOLUME)
    given.log_driver.name = "syslog"
    given.spec.resources.swap_bytes.value = 1
    given.spec.resources.memory_swappiness.value = 1
    given.spec.resources.limits.generic.add()
    why = refusal(executor(tmp_path), given)
    for name in (
        "init",
        "sysctls",
        "privileges.credential_spec",
        "privileges.selinux_context",
        "privileges.seccomp",
        "networks",
        "endpoint.ports",
        "volumes",
        "resource_references",
        "log_driver",
        "resources.swap_bytes",
        "resources.memory_swappiness",
        "resources.limits.generic",
    ):
        assert f"{name} cannot be honoured: " in why


def test_what_asks_for_nothing_is_no_reason_to_refuse(tmp_path: Path) -> None:
    given = task(healthcheck=healthcheck("NONE"))
    given.spec.container.init.value = False
    given.spec.container.dns_config.SetInParent()
    given.spec.container.pull_options.SetInParent()
    given.spec.container.privileges.selinux_context.disable = True
    given.spec.container.labels["a"] = "b"
    given.endpoint.spec.SetInParent()
    given.spec.resources.reservations.memory_bytes = 5
    assert executor(tmp_path).resolve(given).spec.argv == ["/bin/app"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"command": []}, "command and args are empty"),
        ({"command": ["a\0b"]}, "NUL"),
        ({"dir": "srv"}, "not an absolute path"),
        ({"stop_signal": "SIGNOPE"}, "stop_signal 'SIGNOPE' is not a signal"),
        ({"stop_signal": "0"}, "stop_signal '0' is not a signal"),
        ({"env": ["=x"]}, "is not NAME=VALUE"),
        ({"oom_score_adj": 2000}, "not within -1000 and 1000"),
        ({"ulimits": [specs_pb2.ContainerSpec.Ulimit(name="nope")]}, "ulimit 'nope' is not a limit"),
        ({"ulimits": [specs_pb2.ContainerSpec.Ulimit(name="nofile", soft=9, hard=3)]}, "soft 9 exceeds hard 3"),
        ({"capability_add": ["NET ADMIN"]}, "not a capability's name"),
    ],
)
def test_bad_values_are_refused(tmp_path: Path, fields: dict[str, Any], why: str) -> None:
    assert why in refusal(executor(tmp_path), task(**fields))


def test_other_runtimes_are_refused(tmp_path: Path) -> None:
    given = objects_pb2.Task(id="t")
    given.spec.attachment.container_id = "x"
    assert refusal(executor(tmp_path), given).startswith("exec: unsupported runtime")
    assert refusal(executor(tmp_path), objects_pb2.Task(id="t")).startswith("exec: unsupported runtime")


def test_names_of_tasks() -> None:
    assert task_name(task()) == "web.3.t1"
    everywhere = objects_pb2.Task(id="t1", node_id="n1")
    everywhere.service_annotations.name = "web"
    assert task_name(everywhere) == "web.n1.t1"
    everywhere.annotations.name = "own"
    assert task_name(everywhere) == "own"


def test_the_hosts_own_tables_are_read() -> None:
    users = Users()
    root = users.find("0:0")
    assert (root.name, root.uid, root.gid) == ("root", 0, 0)
    assert users.find("root").home == "/root"
    assert users.find("12345:54321", ["7"]) == User("12345", "/", 12345, 54321, (7,))
    assert users.current(os.geteuid()).uid == os.geteuid()
    for text, why in (("nosuchuser", "user"), ("root:nosuchgroup", "group"), ("12345", "no entry")):
        with pytest.raises(BadInput, match=why):
            users.find(text)
