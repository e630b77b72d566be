"""The grammar of image references, as Docker's distribution has it (reference manager §11.8).

Only whether a text is one: `domain/path:tag@digest`, with `docker.io/library/` filled in where a name has no domain.
"""

from __future__ import annotations

import re

_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_LABEL = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?"
_REFERENCE = re.compile(
    rf"(?P<name>{_DOMAIN}/(?P<path>{_COMPONENT}(?:/{_COMPONENT})*))"
    r"(?::[0-9A-Za-z_][0-9A-Za-z_.-]{0,127})?"
    r"(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?"
)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")
_DIGEST_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_PATH_LENGTH = 255


def is_image_reference(text: str) -> bool:
    """Whether Docker would take `text` as the name of an image."""
    if _IDENTIFIER.fullmatch(text):
        return False
    match = _REFERENCE.fullmatch(_with_domain(text))
    if match is None or len(match["path"]) > _PATH_LENGTH:
        return False
    if match["digest"] is None:
        return True
    algorithm, _, digits = match["digest"].partition(":")
    return len(digits) == _DIGEST_LENGTHS.get(algorithm) and digits == digits.lower()


def _with_domain(text: str) -> str:
    """`text` with Docker Hub's domain where its first part does not look like one."""
    first, slash, _ = text.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        return text
    return f"docker.io/{text}" if slash else f"docker.io/library/{text}"
