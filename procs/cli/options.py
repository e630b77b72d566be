"""What a node is told when it is made, by `init`, `join` or `adopt`: the options they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from swarm.nodeconfig import AVAILABILITIES, DEFAULT_LISTEN

F = TypeVar("F", bound=Callable[..., Any])


def labels(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`KEY=VALUE` strings as a dict."""
    found: dict[str, str] = {}
    for text in values:
        key, separator, value = text.partition("=")
        if not key or not separator:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        found[key] = value
    return found


def generic_resources(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`KIND=COUNT` or `KIND=NAME` strings (repeated, or separated by commas) as node.toml holds them: kind to a count,
    or to names separated by commas."""
    found: dict[str, list[str]] = {}
    for text in (part.strip() for value in values for part in value.split(",")):
        kind, _, value = (part.strip() for part in text.partition("="))
        if not kind or not value:
            raise click.BadParameter(f"{text!r} is not KIND=COUNT or KIND=NAME")
        found.setdefault(kind, []).append(value)
    for kind, listed in found.items():
        if len(listed) > 1 and any(value.isdigit() for value in listed):
            raise click.BadParameter(f"{kind!r} has a count beside other values; give one count, or names only")
        if len(set(listed)) != len(listed):
            raise click.BadParameter(f"{kind!r} names {max(listed, key=listed.count)!r} twice")
    return {kind: ",".join(listed) for kind, listed in found.items()}


def node_options(command: F) -> F:
    """What `place_options` gives, and --availability."""
    choice = click.option("--availability", type=click.Choice(AVAILABILITIES), default="active", show_default=True)
    return place_options(choice(command))


def place_options(command: F) -> F:
    """--listen-addr, --advertise-addr, --hostname, --label, --generic-resource: what this host says of itself."""
    for option in reversed(
        (
            click.option(
                "--listen-addr", metavar="HOST:PORT", default=DEFAULT_LISTEN, show_default=True, help="Remote API."
            ),
            click.option(
                "--advertise-addr", metavar="HOST:PORT", default="", help="Address told to peers, if another."
            ),
            click.option("--hostname", metavar="NAME", default="", help="Name in listings; else the machine's."),
            click.option(
                "--label", "labels", metavar="K=V", multiple=True, callback=labels, help="Engine label; repeatable."
            ),
            click.option(
                "--generic-resource",
                "generic_resources",
                metavar="KIND=N|NAME",
                multiple=True,
                callback=generic_resources,
                help="What else this node offers, as `ssd=2` or `gpu=UUID1,gpu=UUID2`; repeatable.",
            ),
        )
    ):
        command = option(command)
    return command
