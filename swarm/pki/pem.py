"""PEM with headers, read and written as Go does it (reference/node-and-ca §3.9, §4.1).

OpenSSL-style loaders refuse the headers that SwarmKit puts on node keys, so this codec stands before them.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_BEGIN = b"-----BEGIN "
_END = b"\n-----END "
_DASHES = b"-----"
_LINE = 64
_BLANKS = re.compile(rb"\s*")

CERTIFICATE = "CERTIFICATE"


@dataclass(frozen=True)
class Block:
    """One PEM block: what stands behind BEGIN, the headers, the decoded bytes."""

    type: str
    data: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The block as text: `Proc-Type` first, other headers in byte order, base64 in lines of 64, LF."""
        lines = [f"-----BEGIN {self.type}-----"]
        if self.headers:
            names = sorted(self.headers, key=lambda name: (name != "Proc-Type", name.encode()))
            lines += [f"{name}: {self.headers[name]}" for name in names]
            lines.append("")
        text = base64.b64encode(self.data).decode()
        lines += [text[i : i + _LINE] for i in range(0, len(text), _LINE)]
        lines += [f"-----END {self.type}-----", ""]
        return "\n".join(lines).encode()


def decode(data: bytes) -> tuple[Block | None, bytes]:
    """The first block in `data` and what follows it; (None, data) if there is none.

    Leading garbage and malformed blocks are skipped. Never raises, whatever the bytes, and takes a time that grows
    with their number alone.
    """
    block, end = _Scanner(data).next(0)
    return block, data[end:]


def blocks(data: bytes) -> Iterator[Block]:
    """Every block of `data`, in order."""
    scanner, at = _Scanner(data), 0
    while True:
        block, at = scanner.next(at)
        if block is None:
            return
        yield block


def bundle(data: bytes) -> tuple[list[Block], bytes]:
    """Every block of `data`, each of which may stand behind blanks, and what follows the last one, without blanks."""
    found: list[Block] = []
    scanner, at = _Scanner(data), 0
    while True:
        block, end = scanner.next(scanner.after_blanks(at))
        if block is None:
            return found, data[at:].strip()
        found.append(block)
        at = end


def normalize_pems(data: bytes) -> bytes:
    """`data`'s blocks without headers, surroundings and odd line breaks (§3.9). Pure garbage gives nothing."""
    return b"".join(Block(block.type, block.data).encode() for block in bundle(data)[0])


class _Scanner:
    """Looks at each byte of a text a few times at most: peers send such texts, and nobody shall keep us busy with one.

    A search for the next END starts where the last one ended, and a body in which another block begins is not decoded.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._end = -1
        """Where the END that was found last begins."""

    def next(self, at: int) -> tuple[Block | None, int]:
        """The first block from `at` on, where a line begins, and the offset behind it; (None, at) if there is none."""
        data, start = self._data, at
        while True:
            if data.startswith(_BEGIN, at):
                at += len(_BEGIN)
            else:
                found = data.find(b"\n" + _BEGIN, at)
                if found < 0:
                    return None, start
                at = found + 1 + len(_BEGIN)
            title, at = self._line(at)
            if not title.endswith(_DASHES):
                continue
            headers, at = self._headers(at)
            if not headers and data.startswith(_END[1:], at):
                end = at - 1
            else:
                end = self._next_end(at)
                if end < 0:
                    return None, start
            ending, after = self._line(end + len(_END))
            if ending != title or data.find(b"-", at, end) >= 0:
                continue
            try:
                content = base64.b64decode(b"".join(data[at : max(at, end)].split()), validate=True)
            except (binascii.Error, ValueError):
                continue
            return Block(_text(title[: -len(_DASHES)]), content, headers), after

    def after_blanks(self, at: int) -> int:
        """The offset of the first byte from `at` on that is no blank."""
        found = _BLANKS.match(self._data, at)
        return at if found is None else found.end()

    def _headers(self, at: int) -> tuple[dict[str, str], int]:
        headers: dict[str, str] = {}
        while at < len(self._data):
            line, after = self._line(at)
            name, colon, value = line.partition(b":")
            if not colon:
                break
            headers[_text(name)] = _text(value)
            at = after
        return headers, at

    def _line(self, at: int) -> tuple[bytes, int]:
        """The line at `at` without its end and trailing blanks, and the offset of what follows."""
        end = self._data.find(b"\n", at)
        end, after = (len(self._data), len(self._data)) if end < 0 else (end, end + 1)
        return self._data[at:end].rstrip(b" \t\r"), after

    def _next_end(self, at: int) -> int:
        if self._end < at:
            self._end = self._data.find(_END, at)
        return self._end


def _text(raw: bytes) -> str:
    return raw.strip().decode("utf-8", "backslashreplace")
