"""Structured log lines, one record a line: `time=… level=… process=… node=… cause=… msg="…"` (logfmt).

Everything goes to stderr; supervisord keeps it, bounded, in `<state>/logs/`. Nothing secret is logged.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

LEVELS = ("debug", "info", "warning", "error")

_BARE = re.compile(r"[^\s\"=\x00-\x1f\x7f]+")
_ESCAPES = {ord('"'): '\\"', ord("\\"): "\\\\", ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
_identity = {"process": "", "node": ""}


def configure(process: str, *, level: str = "info", stream: TextIO | None = None) -> logging.Logger:
    """Send this process's records to `stream` (stderr), stamped with `process`; return its logger."""
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(LogfmtFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    _identity["process"] = process
    return logging.getLogger(process)


def set_node_id(node_id: str) -> None:
    """From now on every line carries `node=<node_id>`."""
    _identity["node"] = node_id


class BoundLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose every line carries fields; `extra={"fields": {…}}` of a call adds to them."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        extra: Mapping[str, Any] = kwargs.get("extra") or {}
        kwargs["extra"] = {**extra, "fields": {**(self.extra or {}), **extra.get("fields", {})}}
        return msg, kwargs


def bind(log: logging.Logger | BoundLogger, **fields: object) -> BoundLogger:
    """`log` with `fields` (cause=…, task=…) on every line; binds may be nested."""
    if isinstance(log, BoundLogger):
        return BoundLogger(log.logger, {**(log.extra or {}), **fields})
    return BoundLogger(log, fields)


class LogfmtFormatter(logging.Formatter):
    """`key=value` in a fixed order: time, level, process, node, bound fields, msg.

    A traceback, or the lines of `extra={"trailer": […]}`, follow indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        pairs: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": _identity["process"] or record.name,
            "node": _identity["node"],
            **getattr(record, "fields", {}),
            "msg": record.getMessage(),
        }
        line = " ".join(f"{key}={quote(value)}" for key, value in pairs.items() if value not in ("", None))
        trailer = list(getattr(record, "trailer", ()))
        if record.exc_info:
            trailer += self.formatException(record.exc_info).splitlines()
        return "\n".join([line, *(f"    {part}" for part in trailer)])


def quote(value: object) -> str:
    """`value` as logfmt: bare where that is unambiguous, else in double quotes, always on one line."""
    text = str(value)
    if _BARE.fullmatch(text) and text.isprintable():
        return text
    escaped = text.translate(_ESCAPES)
    return '"' + "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in escaped) + '"'
