"""`--external-ca protocol=cfssl,url=https://…[,cacert=FILE][,KEY=VALUE…]` as swarmd and docker write it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import click

from swarm.api import types_pb2

_REMEDIES = {
    "rotating from one external CA to a different external CA is not supported": "only a root's own key can sign the "
    "next root: rotate to a root of the swarm's own first (`swarmvisor swarm ca --rotate`), then to the other signer",
    "corresponding to the current CA certificate": "--external-ca replaces the whole list: name the signer of the "
    "present root too (`swarmvisor swarm ca -o json` has it), and see that it answers",
    "corresponding to the next CA certificate": "a rotation to that root is under way: see that its signer answers",
    "corresponding to the desired CA certificate": "see that it answers at its https URL with a certificate under "
    "the root of --ca-cert, and that the same root stands at `cacert=`",
}


def remedy_for(message: str) -> str:
    """What to do about a manager's refusal that has to do with external CAs; empty: it has not."""
    return next((remedy for text, remedy in _REMEDIES.items() if text in message), "")


class ExternalCA(click.ParamType[types_pb2.ExternalCA]):
    """One signer (reference node-and-ca §9.1 for the texts)."""

    name = "external-ca"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> types_pb2.ExternalCA:
        if isinstance(value, types_pb2.ExternalCA):
            return value
        entry = types_pb2.ExternalCA(protocol=types_pb2.ExternalCA.CFSSL)
        protocol = ""
        for text in next(csv.reader([str(value)]), []):
            key, equals, content = text.partition("=")
            if not equals:
                self.fail(f"invalid field '{text}' must be a key=value pair", param, ctx)
            match key.lower():
                case "protocol":
                    protocol = content.lower()
                    if protocol != "cfssl":
                        self.fail(f"unrecognized external CA protocol {content}", param, ctx)
                case "url":
                    entry.url = content
                case "cacert":
                    entry.ca_cert = Path(content).read_bytes()
                case _:
                    entry.options[key.lower()] = content
        if not protocol:
            self.fail("the external-ca option needs a protocol= parameter", param, ctx)
        if not entry.url:
            self.fail("the external-ca option needs a url= parameter", param, ctx)
        return entry
