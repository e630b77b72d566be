"""What UpdateCluster does with a CA configuration: every refusal, and what each accepted one starts or gives up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import pytest

from procs.manager.control.ca_config import plan
from procs.manager.status import Status
from swarm.api.types_pb2 import CAConfig
from swarm.api.types_pb2 import RootCA as RootRecord
from swarm.errors import Unreachable
from swarm.pki import privatekey
from swarm.pki.certificate import parse_bundle
from swarm.pki.crosssign import cross_sign
from swarm.pki.rootca import RootCA
from tests.unit.control.conftest import IA
from tests.unit.pki.authority import make

NOW = 1_700_000_000.0
YEAR = 365 * 24 * 3600
OLD, NEW, THIRD = (RootCA.create(now=NOW) for _ in range(3))
NOBODY = "there must be at least one valid, reachable external CA corresponding to the {} CA certificate"


@dataclass
class Signers:
    """External CAs of which some answer."""

    up: set[str] = field(default_factory=set)
    refuse: bool = False
    asked: list[str] = field(default_factory=list)

    async def reachable(self, urls: Sequence[str], root_pem: bytes) -> bool:
        return bool(self.up & set(urls))

    async def cross_sign(self, urls: Sequence[str], root_pem: bytes, new_root: bytes, new_key: bytes) -> bytes:
        self.asked += urls
        if self.refuse:
            raise Unreachable("no")
        return cross_sign(OLD, new_root)


def record(*, key: bool = True, rotating: RootCA | None = None, rotation_key: bool = True) -> RootRecord:
    made = RootRecord(ca_cert=OLD.certs, ca_key=OLD.key_pem if key else b"", last_forced_rotation=5)
    made.join_tokens.worker = "worker"
    if rotating is not None:
        made.root_rotation.ca_cert = rotating.certs
        made.root_rotation.ca_key = rotating.key_pem if rotation_key else b""
        made.root_rotation.cross_signed_ca_cert = cross_sign(OLD, rotating.certs)
    return made


def config(root: RootCA | None = None, *, key: bool = True, force: int = 5, urls: Sequence[str] = ()) -> CAConfig:
    made = CAConfig(force_rotate=force)
    if root is not None:
        made.signing_ca_cert, made.signing_ca_key = root.certs, root.key_pem if key else b""
    for url in urls:
        name, _, of = url.partition("@")
        tagged = {"old": OLD, "new": NEW, "third": THIRD}
        made.external_cas.add(url=name, ca_cert=tagged[of].certs if of else b"")
    return made


@pytest.mark.parametrize("old_key", [True, False])
async def test_nothing_asked_for_changes_nothing(old_key: bool) -> None:
    current = record(key=old_key)
    assert await plan(current, config(urls=["up"]), Signers({"up"}), NOW) == current


async def test_a_forced_rotation_makes_a_root_that_the_old_one_vouches_for() -> None:
    after = await plan(record(), config(force=6), Signers(), NOW)
    rotation = after.root_rotation
    (new,), (crossed,) = parse_bundle(rotation.ca_cert), parse_bundle(rotation.cross_signed_ca_cert)
    assert after.ca_cert == OLD.certs
    assert after.last_forced_rotation == 6
    assert after.join_tokens.worker == "worker"
    assert new.common_name == "swarm-ca"
    assert crossed.public_key == new.public_key
    assert crossed.is_signed_by(OLD.pool[0])
    assert RootCA.from_pem(OLD.certs, rotation.ca_key, rotation.cross_signed_ca_cert, rotation.cross_signed_ca_cert)


async def test_a_rotation_in_a_rotation_is_vouched_for_by_the_original_root() -> None:
    after = await plan(record(rotating=NEW), config(THIRD, force=6), Signers(), NOW)
    assert after.root_rotation.ca_cert == THIRD.certs
    assert parse_bundle(after.root_rotation.cross_signed_ca_cert)[0].is_signed_by(OLD.pool[0])


async def test_the_current_root_gives_a_rotation_up() -> None:
    after = await plan(record(rotating=NEW), config(OLD, force=6), Signers(), NOW)
    assert (after.HasField("root_rotation"), after.ca_key, after.last_forced_rotation) == (False, OLD.key_pem, 6)
    outside = await plan(record(), config(OLD, key=False, urls=["up@old"]), Signers({"up"}), NOW)
    assert outside.ca_key == b"", "the key was taken away: signed outside from now on"


async def test_the_target_of_a_running_rotation_only_gets_its_key() -> None:
    current = record(rotating=NEW, rotation_key=False)
    after = await plan(current, config(NEW, force=6), Signers(), NOW)
    assert after.root_rotation.ca_key == NEW.key_pem
    assert after.root_rotation.cross_signed_ca_cert == current.root_rotation.cross_signed_ca_cert


async def test_an_external_root_takes_its_key_over_and_asks_nobody() -> None:
    after = await plan(record(key=False, rotating=NEW), config(OLD, force=6), Signers(), NOW)
    assert (after.ca_key, after.HasField("root_rotation")) == (OLD.key_pem, False)


async def test_an_external_root_has_its_successor_signed_outside() -> None:
    signers = Signers({"up"})
    after = await plan(record(key=False), config(NEW, force=6, urls=["up", "other@old", "no@new"]), signers, NOW)
    assert signers.asked == ["up", "other"]
    assert parse_bundle(after.root_rotation.cross_signed_ca_cert)[0].is_signed_by(OLD.pool[0])


SOON = make("soon", start=NOW - 10, end=NOW + YEAR - 10)
REFUSED = {
    "key without certificate": (
        record(),
        CAConfig(signing_ca_key=b"k"),
        Signers(),
        "if a signing CA key is provided, the signing CA cert must also be provided",
    ),
    "nobody for the present external root": (record(key=False), config(), Signers(), NOBODY.format("current")),
    "its signer is down": (record(key=False), config(urls=["x"]), Signers({"up"}), NOBODY.format("current")),
    "wrong key for the present external root": (
        record(key=False),
        CAConfig(signing_ca_cert=OLD.certs, signing_ca_key=NEW.key_pem),
        Signers({"up"}),
        "certificate key mismatch",
    ),
    "nobody for the next external root": (
        record(rotating=NEW, rotation_key=False),
        config(urls=["up@old"]),
        Signers({"up"}),
        NOBODY.format("next"),
    ),
    "two certificates": (
        record(),
        CAConfig(signing_ca_cert=NEW.certs + THIRD.certs, signing_ca_key=NEW.key_pem),
        Signers(),
        "the desired CA certificate cannot contain multiple certificates",
    ),
    "ends within a year": (
        record(),
        CAConfig(signing_ca_cert=SOON.pem, signing_ca_key=SOON.key_pem),
        Signers(),
        "CA certificate expires too soon",
    ),
    "nobody for the desired root": (
        record(),
        config(NEW, key=False, urls=["up"]),
        Signers({"up"}),
        NOBODY.format("desired"),
    ),
    "what is no certificate": (
        record(),
        CAConfig(signing_ca_cert=b"junk"),
        Signers(),
        "no valid root CA certificates found",
    ),
    "a key of another certificate": (
        record(),
        CAConfig(signing_ca_cert=NEW.certs, signing_ca_key=THIRD.key_pem),
        Signers(),
        "certificate key mismatch",
    ),
    "an external root and no signer of it": (
        record(key=False),
        config(NEW, urls=["up@new"]),
        Signers({"up"}),
        NOBODY.format("current"),
    ),
    "from one external CA to another": (
        record(key=False),
        config(NEW, key=False, urls=["up", "two@new"]),
        Signers({"up", "two"}),
        "rotating from one external CA to a different external CA is not supported",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_cannot_be_is_refused(case: str) -> None:
    current, wanted, signers, text = REFUSED[case]
    with pytest.raises(Status) as refused:
        await plan(current, wanted, signers, NOW)
    assert (refused.value.code, refused.value.message) == (IA, text)


async def test_another_certificate_with_the_present_key_is_refused() -> None:
    again = make("again", key=privatekey.load_pem(OLD.key_pem), start=NOW - 10, end=NOW + 900 * 86400)  # type: ignore[arg-type]
    with pytest.raises(Status, match="Cannot update to a cert with an identical key"):
        await plan(record(), CAConfig(signing_ca_cert=again.pem, signing_ca_key=OLD.key_pem), Signers(), NOW)


async def test_a_signer_that_does_not_cross_sign_is_an_internal_error() -> None:
    with pytest.raises(Status) as refused:
        await plan(record(key=False), config(NEW, urls=["up"]), Signers({"up"}, refuse=True), NOW)
    assert refused.value.code is grpc.StatusCode.INTERNAL
    assert refused.value.message == "unable to generate a cross-signed certificate for root rotation"
