"""The roles of this node, from what its own processes say on the bus. Pure; needs no manager, and so no grpc."""

from __future__ import annotations

from typing import Any

from ipc import topics
from procs.cli.observed import View


def describe(view: View, role: str, now: float) -> dict[str, Any]:
    """The roles of this node: what the swarm wants, what its managers have noted, what the certificate says (`role`),
    and the step of a change in words."""
    node = view.body("node", topics.Node)
    changes = view.body("node.changes", topics.NodeChanges)
    asked = view.body("role", topics.Role)
    certificate = view.body("certificate", topics.Certificate)
    words = node.step if node is not None else ""
    wants = asked is not None and asked.replace_fingerprint and certificate is not None
    if wants and asked is not None and certificate is not None and asked.replace_fingerprint == certificate.fingerprint:
        words = f"{asked.why}; {certificate_step(certificate, now)}"
    return {
        "desired": changes.desired_role if changes is not None else "",
        "observed": changes.observed_role if changes is not None else "",
        "certificate": role,
        "step": words,
    }


def certificate_step(certificate: topics.Certificate, now: float) -> str:
    """The renewer's request under way: `waiting for certificate, attempt 3, next in 4 s: connection refused`."""
    words = "waiting for certificate"
    if certificate.attempt:
        words += f", attempt {certificate.attempt}"
    left = certificate.next_try_at - now
    if certificate.next_try_at:
        words += f", next in {max(0.0, left):.0f} s"
    return words + (f": {certificate.why}" if certificate.why else "")
