"""`node.toml`: what the operator chose for this node. Written by the command line only, read by every process."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from swarm.errors import BadInput, CorruptFile
from swarm.files import write_atomic

DEFAULT_LISTEN = "0.0.0.0:2377"
AVAILABILITIES = ("active", "pause", "drain")
ENGINES = ("sqlite",)


@dataclass(frozen=True)
class NodeConfig:
    """The fields of `node.toml`, with every default in this one place."""

    hostname: str = ""
    """Name shown in listings; empty: the machine's."""
    listen_addr: str = DEFAULT_LISTEN
    """`HOST:PORT` of the remote API (managers)."""
    advertise_addr: str = ""
    """`HOST:PORT` told to peers; empty: `0.0.0.0:<listen port>`, which peers replace by the source address."""
    join_addr: str = ""
    """`HOST:PORT` of a manager to join; empty: this node bootstraps a new swarm."""
    availability: str = "active"
    """active, pause or drain: what the node asks for when it becomes a member."""
    store: str = "sqlite"
    """Engine of a new swarm's store."""
    workload_user: str = "nobody"
    """Who runs tasks that name no user, where the node runs as root."""
    allow_root_tasks: bool = True
    """Whether `user=root` in a task is honoured."""
    labels: dict[str, str] = field(default_factory=dict)
    """Engine labels of this node (constraint `engine.labels.KEY`)."""
    generic_resources: dict[str, str] = field(default_factory=dict)
    """Operator-declared resources, kind to count."""
    fips: bool = False
    """Whether this node keeps to FIPS: forms of keys, and which swarms it may join (reference/node-and-ca §1.12)."""
    heartbeat_tick: int = 1
    election_tick: int = 10
    default_address_pools: list[str] = field(default_factory=list)
    subnet_size: int = 24


def split_host_port(text: str, what: str) -> tuple[str, int]:
    """`HOST:PORT` (IPv6 in brackets) as a pair. Raises BadInput naming `what`."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.%\w]+\]|[^:\[\]\s]*):(\d{1,5})", text)
    if not match or int(match[2]) > 65535:
        raise BadInput(f"{what}: {text!r} is not HOST:PORT", remedy="write for example 192.0.2.1:2377")
    return match[1].strip("[]"), int(match[2])


def validate(config: NodeConfig) -> NodeConfig:
    """`config` itself if every field can be used, else BadInput naming the field."""
    split_host_port(config.listen_addr, "listen_addr")
    for name in ("advertise_addr", "join_addr"):
        if getattr(config, name):
            split_host_port(getattr(config, name), name)
    if config.availability not in AVAILABILITIES:
        raise BadInput(f"availability: {config.availability!r} is not one of {', '.join(AVAILABILITIES)}")
    if config.store not in ENGINES:
        raise BadInput(f"store: {config.store!r} is not one of {', '.join(ENGINES)}")
    if len(config.hostname) > 253 or any(c.isspace() for c in config.hostname):
        raise BadInput(f"hostname: {config.hostname!r} is not a host name")
    return config


def load_node_config(path: Path) -> NodeConfig:
    """Read and check `node.toml`. FileNotFoundError if there is none; CorruptFile names the file and what is wrong."""
    remedy = "mend or restore the file, then run `swarmvisor up`"
    try:
        with path.open("rb") as source:
            table = tomllib.load(source)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptFile(path, f"not TOML: {error}", remedy=remedy) from error
    hints = get_type_hints(NodeConfig)
    known = {f.name for f in dataclasses.fields(NodeConfig)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise CorruptFile(path, f"unknown field {unknown[0]!r}", remedy=remedy)
    for name, value in table.items():
        if not _fits(value, hints[name]):
            raise CorruptFile(path, f"{name}: {value!r} is not a {hints[name]}", remedy=remedy)
    try:
        return validate(NodeConfig(**table))
    except BadInput as error:
        raise CorruptFile(path, error.message, remedy=error.remedy or remedy) from error


def save_node_config(path: Path, config: NodeConfig) -> None:
    """Write every field that differs from its default, atomically, 0600."""
    write_atomic(path, render(config).encode(), mode=0o600)


def render(config: NodeConfig) -> str:
    """`config` as TOML: only what differs from the defaults."""
    default = NodeConfig()
    lines = ["# This node's settings; written by `swarmvisor`, read by its processes at start.\n"]
    tables: list[str] = []
    for name in (f.name for f in dataclasses.fields(config)):
        value = getattr(config, name)
        if value == getattr(default, name):
            continue
        if isinstance(value, dict):
            entries = "".join(f"{_text(k)} = {_text(v)}\n" for k, v in sorted(value.items()))
            tables.append(f"\n[{name}]\n{entries}")
        else:
            lines.append(f"{name} = {_text(value)}\n")
    return "".join(lines + tables)


def _fits(value: Any, hint: Any) -> bool:
    if hint == dict[str, str]:
        return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    if hint == list[str]:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _text(value: Any) -> str:
    """A scalar or list as TOML: JSON's notation is TOML's, but for escaped surrogates and DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
