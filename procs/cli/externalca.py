"""`--external-ca protocol=cfssl,url=https://…[,cacert=FILE][,KEY=VALUE…]` as swarmd and docker write it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import click

from swarm.api import types_pb2


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
