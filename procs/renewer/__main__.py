"""renewer: keeps this node's key and certificate, and the swarm's root on disk.

Owns   `certificates/` of the state directory: makes the first certificates of a new swarm, renews and replaces the
       node's pair, installs new roots. The manager writes the key file's headers through the same class, nothing else.
Says   `certificate`.
Hears  `role` (replace this fingerprint), `node.changes` (new root), `manager` (is the local one ready, does its store
       hold the root's key), `remotes` (whom else to ask).
Never  touches the store, starts or stops a process, overwrites a file that it cannot read, or says a secret.

The brain is `machine.py` (its docstring is the table of phases); this shell performs what it asks for.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from ipc import topics
from ipc.aio import AsyncBus, Value
from procs.renewer import events
from procs.renewer.machine import Renewer
from swarm import logs
from swarm.clock import Clock, ClockWatch, SystemClock
from swarm.errors import CorruptFile, Locked, SwarmvisorError
from swarm.exits import ExitCode
from swarm.joining import JoinFailed, NoCertificate, Trouble
from swarm.metrics import Metrics, MetricsServer, Sample
from swarm.nodeconfig import load_node_config
from swarm.process import Context
from swarm.process_async import run_async
from swarm.remotes import DEFAULT_WEIGHT, Peer, Remotes

if TYPE_CHECKING:
    from swarm.pki.credentials import Credentials
    from swarm.pki.keyfile import Kek

HEARD = ("role", "node.changes", "manager", "remotes")


class Shell:
    """Feeds the brain from the bus, timers and finished work; performs its effects."""

    def __init__(self, context: Context, bus: AsyncBus, metrics: Metrics, clock: Clock) -> None:
        self._paths = context.paths
        self._log = context.log
        self._bus = bus
        self._clock = clock
        self._brain = Renewer()
        self._remotes = Remotes()
        self._events: asyncio.Queue[tuple[events.Event, str]] = asyncio.Queue()
        self._held: Credentials | None = None
        self._issued: tuple[Credentials, Kek] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._requests = metrics.counter(
            "swarmvisor_certificate_requests_total", "Certificates asked for, by how it ended.", ("result",)
        )
        self._not_after = metrics.gauge(
            "swarmvisor_certificate_not_after_seconds", "End of the node certificate's validity, Unix time."
        )
        metrics.add_source(self._bus_samples)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._begin(), name="begin")
            group.create_task(self._listen(), name="listen")
            while True:
                event, cause = await self._events.get()
                moment = events.Moment(self._clock.wall_ns() / 1e9, self._clock.monotonic())
                for effect in self._brain.handle(event, moment):
                    self._perform(effect, cause, group)

    def _perform(self, effect: events.Effect, cause: str, group: asyncio.TaskGroup) -> None:
        match effect:
            case events.Publish(certificate):
                self._say(certificate, cause)
            case events.Begin():
                group.create_task(self._begin(), name="begin")
            case events.Join():
                group.create_task(self._join(), name="join")
            case events.Request(local, why, asked_by):
                logs.bind(self._log, cause=asked_by).info("requesting a certificate: %s", why)
                group.create_task(self._request(local=local, cause=asked_by), name="request")
            case events.Install():
                group.create_task(self._install(cause), name="install")
            case events.InstallRoot(bundle, digest):
                group.create_task(self._install_root(bundle, digest, cause), name="install root")
            case events.RemoveBootstrapKey():
                group.create_task(self._remove_bootstrap_key(), name="remove bootstrap key")
            case events.Prepare():
                group.create_task(asyncio.to_thread(_load_requester), name="prepare")
            case events.WakeAt(monotonic):
                if self._timer is not None:
                    self._timer.cancel()
                later = monotonic - self._clock.monotonic()
                self._timer = asyncio.get_running_loop().call_later(later, self._tell, events.Due())

    def look_again(self) -> None:
        """The operator has done something about what we were stuck at (`swarmvisor unlock`), or the date is another."""
        self._tell(events.LookAgain())

    def watch_clock(self, watch: ClockWatch) -> None:
        """Look again whenever the wall clock was set: the certificate may be due, over, or valid at last."""

        def readable() -> None:
            if watch.was_set():
                self._log.debug("the clock was set; looking at the certificate's dates again")
                self.look_again()

        asyncio.get_running_loop().add_reader(watch.fileno(), readable)

    # -- work that answers the brain ---------------------------------------------------------------

    async def _begin(self) -> None:
        def begin() -> tuple[Credentials, bool] | None:
            from procs.renewer import files  # late: cryptography; here, so that the bus is served meanwhile

            try:
                return files.begin(self._paths, self._clock)
            except files.NotJoined:
                return None

        try:
            found = await asyncio.to_thread(begin)
        except SwarmvisorError as error:
            state = "locked" if isinstance(error, Locked) else "failed"
            self._log.error("%s; waiting", error.describe())
            self._tell(events.Unusable(state, error.describe()))
        else:
            if found is None:
                self._tell(events.MustJoin())
                return
            credentials, bootstrap_key = found
            logs.set_node_id(credentials.node_id)
            self._tell(events.Loaded(self._take(credentials), bootstrap_key))

    async def _join(self) -> None:
        await asyncio.to_thread(_load_joiner)
        from procs.renewer import files  # late: cryptography, loaded since the start
        from procs.renewer.joiner import Joiner  # late: grpc, loaded in the line above

        try:
            config = await asyncio.to_thread(load_node_config, self._paths.node_toml)
            joiner = Joiner(self._paths, config.join_addr, config.availability, config.fips, self._clock, self._log)
            joined, kek = await joiner.join()
            credentials = await asyncio.to_thread(files.install_first, self._paths, joined, kek)
        except (SwarmvisorError, OSError) as error:
            why = error.describe() if isinstance(error, SwarmvisorError) else str(error)
            trouble = error.trouble if isinstance(error, JoinFailed) else Trouble.OTHER
            self._requests.labels("failed").inc()
            self._log.error("could not join: %s", why)
            self._tell(events.JoinRefused(why, trouble, hopeless=isinstance(error, CorruptFile)))
        else:
            self._requests.labels("issued").inc()
            logs.set_node_id(credentials.node_id)
            self._log.info("joined swarm %s as a %s", credentials.cluster_id, credentials.role)
            self._tell(events.Joined(self._take(credentials)))

    async def _request(self, *, local: bool, cause: str) -> None:
        await asyncio.to_thread(_load_requester)
        from procs.renewer.requester import Requester  # late: grpc, loaded in the line above

        requester = Requester(self._paths, self._remotes, logs.bind(self._log, cause=cause))
        try:
            self._issued = await requester.request(self._present(), local=local)
        except SwarmvisorError as error:
            self._requests.labels("failed").inc()
            self._log.warning("%s", error.describe())
            trouble = error.trouble if isinstance(error, NoCertificate) else Trouble.OTHER
            self._tell(events.RequestFailed(error.describe(), trouble), cause)
        else:
            self._requests.labels("issued").inc()
            self._tell(events.Obtained(self._issued[0].role), cause)

    async def _install(self, cause: str) -> None:
        from procs.renewer import files  # late: cryptography, loaded since the start

        issued, self._issued = self._issued, None
        if issued is None:
            raise AssertionError("the brain installs only what was obtained")
        try:
            credentials = await asyncio.to_thread(files.install, self._paths, *issued)
        except (SwarmvisorError, OSError) as error:
            why = error.describe() if isinstance(error, SwarmvisorError) else str(error)
            self._log.error("the new certificate could not be written: %s", why)
            self._tell(events.InstallFailed(why), cause)
        else:
            logs.bind(self._log, cause=cause).info("installed a %s certificate", credentials.role)
            self._tell(events.Installed(self._take(credentials)), cause)

    async def _install_root(self, bundle: bytes, digest: str, cause: str) -> None:
        from procs.renewer import files  # late: cryptography, loaded since the start

        try:
            credentials = await asyncio.to_thread(files.install_root, self._paths, self._present(), bundle, self._clock)
        except (SwarmvisorError, OSError) as error:
            why = error.describe() if isinstance(error, SwarmvisorError) else str(error)
            self._log.warning("the swarm's new root was not installed: %s", why)
            self._tell(events.RootRefused(digest, why), cause)
        else:
            self._log.info("installed the swarm's new root")
            self._tell(events.RootInstalled(self._take(credentials)), cause)

    async def _remove_bootstrap_key(self) -> None:
        from swarm.files import remove_durably  # late: only a new swarm's first manager needs it

        await asyncio.to_thread(remove_durably, self._paths.bootstrap_root_key)
        self._log.info("the store holds the root's key: removed %s", self._paths.bootstrap_root_key.name)

    # -- the bus -----------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async for value in self._bus.updates():
            event = self._understand(value)
            if event is not None:
                self._tell(event, value.cause)

    def _understand(self, value: Value) -> events.Event | None:
        match value.body:
            case topics.Role():
                return events.RoleSaid(value.body, value.cause)
            case topics.NodeChanges(root_ca=root):
                return events.NodeChanged(value.body, hashlib.sha256(root).hexdigest() if root else "")
            case topics.Manager(state=state, root_digest_held=digest, replace_fingerprint=replace):
                return events.ManagerSaid(state == "ready", digest, value.epoch, replace)
            case topics.Remotes(managers):
                listed = ((Peer(m.node_id, m.addr), m.weight or DEFAULT_WEIGHT) for m in managers)
                self._remotes.replace(listed)
                return events.RemotesSaid(managers)
        return None

    def _say(self, certificate: topics.Certificate, cause: str) -> None:
        self._not_after.set(certificate.not_after)
        self._bus.publish("certificate", certificate, cause=cause)

    def _tell(self, event: events.Event, cause: str = "") -> None:
        self._events.put_nowait((event, cause))

    # -- small things ------------------------------------------------------------------------------

    def _take(self, credentials: Credentials) -> events.Held:
        self._held = credentials
        return events.Held(
            node_id=credentials.node_id,
            cluster_id=credentials.cluster_id,
            role=credentials.role,
            not_before=credentials.not_before,
            not_after=credentials.not_after,
            fingerprint=credentials.fingerprint,
            root_digest=credentials.root_digest,
            issuer_subject=credentials.issuer_subject,
            issuer_public_key=credentials.issuer_public_key,
        )

    def _present(self) -> Credentials:
        if self._held is None:
            raise AssertionError("the brain asks for work only after a certificate was loaded")
        return self._held

    def _bus_samples(self) -> Iterator[Sample]:
        for name, count in self._bus.counters.items():
            yield Sample(f"swarmvisor_bus_{name}_total", "Counted by the bus.", count, "counter")


def _load_joiner() -> None:
    """As `_load_requester`."""
    import procs.renewer.joiner  # noqa: F401  late: see above


def _load_requester() -> None:
    """Import what a request needs, off the loop: grpc takes 0.1 s and 15 MB, which a node at rest does not spend."""
    import procs.renewer.requester  # noqa: F401  late: see above


async def body(context: Context, stop: asyncio.Event) -> ExitCode:
    """Run until asked to stop."""
    metrics = Metrics()
    with ExitStack() as cleanup:
        cleanup.enter_context(MetricsServer(context.paths.metrics_socket(context.name), metrics))
        async with AsyncBus(context.paths.bus, topics.RENEWER, HEARD) as bus:
            shell = Shell(context, bus, metrics, SystemClock())
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, shell.look_again)
            try:
                shell.watch_clock(cleanup.enter_context(closing(ClockWatch())))
            except OSError as error:
                context.log.warning("the kernel does not tell when the clock is set; looking once an hour: %s", error)
            work = asyncio.create_task(shell.run(), name="shell")
            stopping = asyncio.create_task(stop.wait(), name="stop")
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            work.cancel()
            await asyncio.wait({work, stopping})
            if not work.cancelled():
                work.result()
    return ExitCode.DONE


def main() -> int:
    return run_async("renewer", "Keep this node's key and certificate.", body)


if __name__ == "__main__":
    sys.exit(main())
