"""XML-RPC to a supervisord on its Unix socket, without asyncio.

The codec is our own because the standard library's `xmlrpc.client` brings `http.client` and `ssl` along: 9 MB in each
process that asks supervisord for one thing (measured). Types: str, int, float, bool, None, list, tuple, dict.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from swarm.errors import SwarmvisorError, Unreachable

NOT_RUNNING: Final = 70
"""supervisor.xmlrpc.Faults.NOT_RUNNING: stopProcess of what does not run."""
ALREADY_STARTED: Final = 60
BAD_NAME: Final = 10
SHUTDOWN_STATE: Final = 6
"""The supervisord is shutting down and takes no more orders."""


class SupervisorFault(SwarmvisorError):
    """supervisord answered with a fault: its `code` (supervisor.xmlrpc.Faults) and `text`."""

    def __init__(self, code: int, text: str, method: str = "") -> None:
        super().__init__(f"supervisord refused {method or 'the call'}: {text} (fault {code})")
        self.code = code
        self.text = text


class SupervisorClient:
    """Calls methods of one supervisord; one connection per call, nothing kept open."""

    def __init__(self, socket_path: Path, timeout: float = 5.0) -> None:
        self.socket_path = socket_path
        self.timeout = timeout
        """Seconds for one whole call, and for each wait in it."""

    def call(self, method: str, *args: Any) -> Any:
        """Call `method`; raises Unreachable if nobody answers in time, SupervisorFault if supervisord refuses."""
        body = encode_call(method, args)
        head = (
            f"POST /RPC2 HTTP/1.0\r\nHost: localhost\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(self.timeout)
                connection.connect(os.fspath(self.socket_path))
                connection.sendall(head + body)
                answer = _read_answer(connection)
        except OSError as error:
            why = "no answer in time" if isinstance(error, TimeoutError) else (error.strerror or str(error))
            raise Unreachable(
                f"supervisord at {self.socket_path} does not answer {method}: {why}",
                remedy="start the node with `swarmvisor up`",
            ) from error
        return decode_answer(answer, method)


def _read_answer(connection: socket.socket) -> bytes:
    """The body of the HTTP answer."""
    data = bytearray()
    while part := connection.recv(65536):
        data += part
        head, found, body = bytes(data).partition(b"\r\n\r\n")
        if found:
            fields = {
                name.strip().lower(): value.strip()
                for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
            }
            length = fields.get(b"content-length")
            if length is not None and len(body) >= int(length):
                break
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].decode("latin-1")
    if status.split(" ")[1:2] != ["200"]:
        raise ConnectionError(f"HTTP answer {status!r}" if status else "connection closed without an answer")
    return body


def encode_call(method: str, args: Sequence[Any]) -> bytes:
    """A methodCall document."""
    params = "".join(f"<param>{_encode(arg)}</param>" for arg in args)
    call = f"<methodCall><methodName>{_escape(method)}</methodName><params>{params}</params></methodCall>"
    return f"<?xml version='1.0'?>{call}".encode()


def _escape(text: str) -> str:
    # not xml.sax.saxutils.escape: its module imports urllib.request, and with it http.client and ssl
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _encode(value: Any) -> str:
    match value:
        case bool():
            inner = f"<boolean>{int(value)}</boolean>"
        case int():
            inner = f"<int>{value}</int>"
        case float():
            inner = f"<double>{value!r}</double>"
        case str():
            inner = f"<string>{_escape(value)}</string>"
        case None:
            inner = "<nil/>"
        case Mapping():
            members = "".join(f"<member><name>{_escape(k)}</name>{_encode(v)}</member>" for k, v in value.items())
            inner = f"<struct>{members}</struct>"
        case list() | tuple():
            inner = f"<array><data>{''.join(map(_encode, value))}</data></array>"
        case _:
            raise TypeError(f"{type(value).__name__} does not travel over XML-RPC")
    return f"<value>{inner}</value>"


def decode_answer(document: bytes, method: str = "") -> Any:
    """The value of a methodResponse; raises SupervisorFault for a fault, Unreachable for what is no answer."""
    try:
        root = ET.fromstring(document)
        fault = root.find("fault/value")
        if fault is not None:
            what = _decode(fault)
            raise SupervisorFault(int(what["faultCode"]), str(what["faultString"]), method)
        value = root.find("params/param/value")
        if value is None:
            raise ValueError("no value")
        return _decode(value)
    except (ET.ParseError, ValueError, KeyError, TypeError) as error:
        raise Unreachable(f"the answer to {method} is not XML-RPC: {error}") from error


def _decode(value: ET.Element) -> Any:
    if len(value) == 0:
        return value.text or ""
    inner = value[0]
    text = inner.text or ""
    match inner.tag:
        case "string":
            return text
        case "int" | "i4" | "i8":
            return int(text)
        case "boolean":
            return text.strip() == "1"
        case "double":
            return float(text)
        case "nil":
            return None
        case "base64":
            return base64.b64decode(text)
        case "array":
            return [_decode(v) for v in inner.iterfind("data/value")]
        case "struct":
            return {m.findtext("name", ""): _decode(_need(m.find("value"))) for m in inner.iterfind("member")}
        case tag:
            raise ValueError(f"unknown type {tag}")


def _need(element: ET.Element | None) -> ET.Element:
    if element is None:
        raise ValueError("a member without a value")
    return element
