"""PEM with headers, read and written as Go does it (reference/node-and-ca §3.9, §4.1).

OpenSSL-style loaders refuse the headers that SwarmKit puts on node keys, so this codec stands before them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_BEGIN = b"-----BEGIN "
_END = b"\n-----END "
_DASHES = b"-----"
_LINE = 64

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

    Leading garbage and malformed blocks are skipped. Never raises, whatever the bytes.
    """
    rest = data
    while True:
        if not rest.startswith(_BEGIN):
            _, found, rest = rest.partition(b"\n" + _BEGIN)
            if not found:
                return None, data
        else:
            rest = rest[len(_BEGIN) :]
        title, rest = _line(rest)
        if not title.endswith(_DASHES):
            continue
        title = title[: -len(_DASHES)]
        headers: dict[str, str] = {}
        while rest:
            line, after = _line(rest)
            name, colon, value = line.partition(b":")
            if not colon:
                break
            headers[_text(name)] = _text(value)
            rest = after
        if not headers and rest.startswith(_END[1:]):
            body, after_end = b"", rest[len(_END) - 1 :]
        else:
            body, found, after_end = rest.partition(_END)
            if not found:
                continue
        end_line, after = _line(after_end)
        if end_line != title + _DASHES:
            continue
        try:
            content = base64.b64decode(b"".join(body.split()), validate=True)
        except (binascii.Error, ValueError):
            continue
        return Block(_text(title), content, headers), after


def blocks(data: bytes) -> Iterator[Block]:
    """Every block of `data`, in order."""
    block, rest = decode(data)
    while block is not None:
        yield block
        block, rest = decode(rest)


def normalize_pems(data: bytes) -> bytes:
    """`data`'s blocks without headers, surroundings and odd line breaks (§3.9). Pure garbage gives nothing."""
    return b"".join(Block(block.type, block.data).encode() for block in blocks(data))


def _line(data: bytes) -> tuple[bytes, bytes]:
    """The first line without its end and trailing blanks, and what follows."""
    line, _, rest = data.partition(b"\n")
    return line.rstrip(b" \t\r"), rest


def _text(raw: bytes) -> str:
    return raw.strip().decode("utf-8", "backslashreplace")
