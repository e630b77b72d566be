"""Go's way of writing values in the error texts that clients match."""

from __future__ import annotations

import json
from decimal import Decimal


def quoted(text: str) -> str:
    """`%q`: in double quotes, control characters escaped."""
    return json.dumps(text, ensure_ascii=False)


def shortest(value: float) -> str:
    """`%g`: the shortest digits that mean `value`, with an exponent below 10^-4 and from 10^6 on."""
    number = Decimal(repr(value)).normalize()
    sign, digits, _ = number.as_tuple()
    exponent = number.adjusted()
    if not number or -4 <= exponent < 6:
        return f"{number:f}"
    mantissa = str(digits[0]) + ("." + "".join(map(str, digits[1:])) if len(digits) > 1 else "")
    return f"{'-' if sign else ''}{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
