"""Whether a chain of certificates leads to a root that we trust, by Go's rules (reference/node-and-ca §3.6).

OpenSSL's rules differ in what SwarmKit relies on (any pool member is an anchor, names compare as bytes), so the
search is our own; signatures are checked by `cryptography`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count

from swarm.errors import BadInput
from swarm.pki.certificate import Certificate, parse_bundle
from swarm.pki.pem import normalize_pems

__all__ = ["CertificateInvalid", "ChainError", "UnknownAuthority", "ValidChain", "normalize_pems", "validate_chain"]

_SIGNATURE_CHECKS = 100
"""Go's bound on one search: certificates that all sign each other have more ways through them than anybody can try."""
_NO_COMMON_TIME = "there is no time span for which all of the certificates, including a root, are valid"


class ChainError(BadInput):
    """The certificates do not lead to a trusted root."""


class UnknownAuthority(ChainError):
    """Nobody trusted signed them."""


class CertificateInvalid(ChainError):
    """One of them is expired or not yet valid."""


@dataclass(frozen=True)
class ValidChain:
    """A bundle that passed, and one way from its leaf to a root."""

    certificates: tuple[Certificate, ...]
    """The bundle as it stood, leaf first."""
    path: tuple[Certificate, ...]
    """Leaf, then each signer up to the anchor. Only the leaf if it is an anchor itself."""

    @property
    def leaf(self) -> Certificate:
        return self.certificates[0]

    @property
    def issuer(self) -> Certificate:
        """The CA that directly signed the leaf."""
        return self.path[min(1, len(self.path) - 1)]


def validate_chain(
    pool: Sequence[Certificate], bundle: bytes, *, allow_expired: bool = False, now: float | None = None
) -> ValidChain:
    """ValidateCertChain (§3.6): dates, each signed by the next, the first one verified against `pool`.

    `now` in Unix seconds, the machine's clock if None. With `allow_expired` a moment is looked for at which all were
    valid; a certificate that is not valid *yet* is always refused. Raises ChainError or its subclasses, BadInput for
    what is no certificate.
    """
    moment = time.time() if now is None else now
    certificates = parse_bundle(bundle)
    if not certificates:
        raise ChainError("no certificates to validate")
    for number, certificate in enumerate(certificates, 1):
        _check_dates(number, certificate, moment, allow_expired=allow_expired)
        if number > 1 and not certificates[number - 2].is_signed_by(certificate):
            child = f"({number - 1} - {certificates[number - 2].common_name})"
            raise ChainError(
                f"certificates do not form a chain: {child} is not signed by ({number} - {certificate.common_name})"
            )
    if not allow_expired:
        return ValidChain(certificates, verify(certificates[0], pool, certificates[1:], moment))
    return ValidChain(certificates, _verify_at_some_time(certificates, pool))


def verify(
    leaf: Certificate, pool: Sequence[Certificate], intermediates: Sequence[Certificate], now: float
) -> tuple[Certificate, ...]:
    """The path from `leaf` to a member of `pool`, as Go's Verify finds it for serverAuth. Raises ChainError."""
    if leaf.unknown_critical:
        raise ChainError("x509: unhandled critical extension")
    _check_moment(leaf, now)
    paths = [(leaf,)] if leaf in pool else _paths((leaf,), pool, intermediates, now, count())
    usable = [path for path in paths if all(certificate.may_serve for certificate in path)]
    if paths and not usable:
        raise ChainError("x509: certificate specifies an incompatible key usage")
    if not usable:
        raise UnknownAuthority("x509: certificate signed by unknown authority")
    return usable[0]


def _paths(
    path: tuple[Certificate, ...],
    pool: Sequence[Certificate],
    intermediates: Sequence[Certificate],
    now: float,
    checks: Iterator[int],
) -> list[tuple[Certificate, ...]]:
    child, found = path[-1], []
    problem: ChainError | None = None
    candidates = [(parent, True) for parent in pool] + [(parent, False) for parent in intermediates]
    for parent, anchor in candidates:
        if parent.subject != child.issuer or any(_same_entity(parent, seen) for seen in path):
            continue
        if next(checks) >= _SIGNATURE_CHECKS:
            limit = "x509: signature check attempts limit reached while verifying certificate chain"
            problem = problem or ChainError(limit)
            break
        if not child.is_signed_by(parent) or parent.unknown_critical or not _may_hold(parent, path, anchor=anchor):
            continue
        try:
            _check_moment(parent, now)
            found += [(*path, parent)] if anchor else _paths((*path, parent), pool, intermediates, now, checks)
        except ChainError as error:
            problem = error
    if problem is not None and not found:
        raise problem
    return found


def _may_hold(parent: Certificate, path: tuple[Certificate, ...], *, anchor: bool) -> bool:
    """Whether `parent`'s constraints let it stand above `path`."""
    constraints = parent.basic_constraints
    if constraints is None:
        return anchor
    return (anchor or constraints.ca) and (constraints.path_length is None or len(path) - 1 <= constraints.path_length)


def _same_entity(one: Certificate, other: Certificate) -> bool:
    """Go ≥ 1.19: a chain holds each (subject, key) once, whoever signed it."""
    return one.subject == other.subject and one.public_key == other.public_key


def _verify_at_some_time(certificates: tuple[Certificate, ...], pool: Sequence[Certificate]) -> tuple[Certificate, ...]:
    """Try the moments at which the certificates themselves end, latest first (§3.6.5)."""
    candidate = certificates[0].not_after + 1
    for certificate in certificates:
        if certificate.not_after >= candidate:
            continue
        candidate = certificate.not_after
        try:
            return verify(certificates[0], pool, certificates[1:], candidate)
        except CertificateInvalid:
            continue
    raise CertificateInvalid(_NO_COMMON_TIME)


def _check_dates(number: int, certificate: Certificate, now: float, *, allow_expired: bool) -> None:
    if now < certificate.not_before:
        side, limit = "before", certificate.not_before
    elif now > certificate.not_after and not allow_expired:
        side, limit = "after", certificate.not_after
    else:
        return
    raise CertificateInvalid(
        f"certificate ({number} - {certificate.common_name}) not valid {side} {_date(limit)}, "
        f"and it is currently {_date(now)}",
        remedy="check this machine's clock",
    )


def _check_moment(certificate: Certificate, now: float) -> None:
    if certificate.not_before <= now <= certificate.not_after:
        return
    early = now < certificate.not_before
    side, limit = ("before", certificate.not_before) if early else ("after", certificate.not_after)
    stamps = [datetime.fromtimestamp(int(t), UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for t in (now, limit)]
    raise CertificateInvalid(
        f"x509: certificate has expired or is not yet valid: current time {stamps[0]} is {side} {stamps[1]}"
    )


def _date(moment: float) -> str:
    """RFC 1123, as SwarmKit prints dates."""
    return datetime.fromtimestamp(int(moment), UTC).strftime("%a, %d %b %Y %H:%M:%S UTC")
