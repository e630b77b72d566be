"""The little DER that we read and write ourselves: where bytes must be exact, or a library writes them otherwise."""

from __future__ import annotations

from collections.abc import Iterator

from swarm.errors import BadInput

INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
NULL = 0x05
OID = 0x06
SEQUENCE = 0x30
CONTEXT_0 = 0xA0


def encode(tag: int, *contents: bytes) -> bytes:
    """One element: `tag`, length, `contents` one after the other."""
    body = b"".join(contents)
    if len(body) < 0x80:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + body


def encode_integer(value: int) -> bytes:
    """A non-negative INTEGER."""
    return encode(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def read(data: bytes, offset: int = 0) -> tuple[int, bytes, int]:
    """The element at `offset`: tag, content, offset of what follows. Raises BadInput if there is no whole one."""
    if len(data) < offset + 2:
        raise BadInput("DER: truncated element")
    tag, length, start = data[offset], data[offset + 1], offset + 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4 or len(data) < start + size:
            raise BadInput("DER: unusable length")
        length = int.from_bytes(data[start : start + size], "big")
        start += size
    if len(data) < start + length:
        raise BadInput("DER: truncated element")
    return tag, data[start : start + length], start + length


def elements(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """The elements of a constructed one: tag, content, and the whole element as it stands. Raises BadInput."""
    offset = 0
    while offset < len(content):
        tag, body, after = read(content, offset)
        yield tag, body, content[offset:after]
        offset = after


def children(data: bytes, tag: int = SEQUENCE) -> list[tuple[int, bytes, bytes]]:
    """The elements inside the one that `data` starts with, which must have `tag`. Raises BadInput."""
    found, content, _ = read(data)
    if found != tag:
        raise BadInput(f"DER: expected tag {tag:#04x}, found {found:#04x}")
    return list(elements(content))
