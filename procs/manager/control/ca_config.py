"""What a cluster's root becomes under a new CA configuration (reference manager §5.8, node-and-ca §6.2, §6.3).

Runs before the transaction, since it may dial external CAs; the transaction then insists on the version it looked at.

    given                                        outcome
    a key without its certificate                refused
    the current root is external, and
      its own certificate with its key           the key is adopted, a rotation is given up
      otherwise                                  an external CA for it must answer
    no certificate, force_rotate unchanged       nothing changes (an external next root must answer)
    no certificate, force_rotate changed         a rotation to a root made here
    the current root's certificate               a rotation is given up, the key replaced
    another certificate with the current key     refused
    the certificate being rotated to             its key is replaced
    another certificate                          a rotation to it
"""

from __future__ import annotations

import grpc

from procs.manager.ca.external import Externals, urls_for
from procs.manager.control.ports import copied
from procs.manager.status import Status, invalid_argument
from swarm.api.types_pb2 import CAConfig
from swarm.api.types_pb2 import RootCA as RootRecord
from swarm.errors import BadInput, SwarmvisorError
from swarm.pki.certificate import parse_bundle
from swarm.pki.crosssign import cross_sign
from swarm.pki.pem import normalize_pems
from swarm.pki.rootca import RootCA

MIN_ROOT_LIFE = 365 * 24 * 3600
"""Seconds that an operator's root must still be valid."""


async def plan(current: RootRecord, config: CAConfig, externals: Externals, now: float) -> RootRecord:
    """The cluster's new root record. `now` in Unix seconds. Raises Status."""
    desired, key = normalize_pems(config.signing_ca_cert), config.signing_ca_key
    if key and not desired:
        raise invalid_argument("if a signing CA key is provided, the signing CA cert must also be provided")
    if config.signing_ca_cert and not desired:
        raise invalid_argument("no valid root CA certificates found")
    root = normalize_pems(current.ca_cert)
    check = _Check(current, config, externals)
    if not current.ca_key:
        if desired == root and key:
            _load(desired, key, now)
            return _with_key(current, key, config.force_rotate)
        await check.must_answer(root, "current")
    if not desired:
        if current.last_forced_rotation != config.force_rotate:
            made = RootCA.create(now=now)
            return await check.rotation(made.certs, made.key_pem, now)
        if current.HasField("root_rotation") and not current.root_rotation.ca_key:
            await check.must_answer(normalize_pems(current.root_rotation.ca_cert), "next")
        return current
    _check_desired(desired, key, now)
    if not key:
        await check.must_answer(desired, "desired")
    if desired == root:
        return _with_key(current, key, config.force_rotate)
    if key and key == current.ca_key:
        raise invalid_argument("Cannot update to a cert with an identical key")
    if current.HasField("root_rotation") and normalize_pems(current.root_rotation.ca_cert) == desired:
        record = copied(current)
        record.root_rotation.ca_key = key
        record.last_forced_rotation = config.force_rotate
        return record
    return await check.rotation(desired, key, now)


class _Check:
    """One evaluation: what it was asked about, and who may be dialled."""

    def __init__(self, current: RootRecord, config: CAConfig, externals: Externals) -> None:
        self._current = current
        self._config = config
        self._externals = externals

    async def must_answer(self, wanted: bytes, which: str) -> None:
        """Raises Status unless an external CA for the root `wanted` can be reached."""
        urls = urls_for(self._config.external_cas, wanted, self._current.ca_cert)
        if not await self._externals.reachable(urls, wanted):
            raise invalid_argument(
                f"there must be at least one valid, reachable external CA corresponding to the {which} CA certificate"
            )

    async def rotation(self, new_cert: bytes, new_key: bytes, now: float) -> RootRecord:
        """A rotation to a new root, cross-signed by the *original* root, whatever rotation runs (§6.3)."""
        record = copied(self._current)
        record.last_forced_rotation = self._config.force_rotate
        record.root_rotation.Clear()
        record.root_rotation.ca_cert = new_cert
        record.root_rotation.ca_key = new_key
        record.root_rotation.cross_signed_ca_cert = normalize_pems(await self._cross_sign(new_cert, new_key, now))
        return record

    async def _cross_sign(self, new_cert: bytes, new_key: bytes, now: float) -> bytes:
        old = self._current
        failed = Status(grpc.StatusCode.INTERNAL, "unable to generate a cross-signed certificate for root rotation")
        if old.ca_key:
            try:
                return cross_sign(RootCA.from_pem(old.ca_cert, old.ca_key, old.ca_cert, now=now), new_cert)
            except SwarmvisorError as error:
                raise failed from error
        if not new_key:
            raise invalid_argument("rotating from one external CA to a different external CA is not supported")
        urls = urls_for(self._config.external_cas, old.ca_cert, old.ca_cert)
        if not urls:
            raise invalid_argument(
                "must provide an external CA for the current external root CA to generate a cross-signed certificate"
            )
        try:
            return await self._externals.cross_sign(urls, old.ca_cert, new_cert, new_key)
        except SwarmvisorError as error:
            raise failed from error


def _check_desired(desired: bytes, key: bytes, now: float) -> None:
    root = _load(desired, key, now)
    if len(root.pool) != 1:
        raise invalid_argument("the desired CA certificate cannot contain multiple certificates")
    if root.pool[0].not_after < now + MIN_ROOT_LIFE:
        raise invalid_argument("CA certificate expires too soon")


def _load(desired: bytes, key: bytes, now: float) -> RootCA:
    try:
        return RootCA.from_pem(desired, key or None, desired if key else None, now=now)
    except BadInput as error:
        raise invalid_argument(error.message) from error


def _with_key(current: RootRecord, key: bytes, force_rotate: int) -> RootRecord:
    """The present root with another key, or none; a rotation is given up."""
    record = copied(current)
    record.ca_key = key
    record.ClearField("root_rotation")
    record.last_forced_rotation = force_rotate
    return record


def is_usable(record: RootRecord) -> bool:
    """Whether the stored bundle holds certificates at all."""
    try:
        return bool(parse_bundle(record.ca_cert))
    except BadInput:
        return False
