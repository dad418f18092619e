"""Taking request payloads apart, with the exact tolerance of the C daemon.

Payloads are NUL-terminated strings, sometimes followed by a raw value.  How strict the daemon is differs by operation
(core.c: onearg, get_strings); numbers are read by strtoul, strtol or atoi rules, which accept more than one would think.
"""

import re
from typing import Final

from protocol.errors import EINVAL
from protocol.ops import Op

_LONG_MAX: Final = 2**63 - 1
_ULONG_MAX: Final = 2**64 - 1
_DECIMAL: Final = re.compile(rb"[ \t\n\v\f\r]*([+-]?)([0-9]+)")
_ANY_BASE: Final = re.compile(rb"[ \t\n\v\f\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))\Z")
_DIGITS_THAT_MATTER: Final = 20
"""2**64 has 20 digits: longer runs of digits saturate, so they are never converted (no quadratic int())."""


def one_string(payload: bytes) -> bytes:
    """The only string of a payload that must be exactly one NUL-terminated string.  Raises EINVAL."""
    end = payload.find(b"\0")
    if end < 0 or end != len(payload) - 1:
        raise EINVAL
    return payload[:end]


def strings(payload: bytes) -> list[bytes]:
    """All NUL-terminated strings; bytes behind the last NUL are ignored, as the C daemon ignores them."""
    return payload.split(b"\0")[:-1]


def string_and_rest(payload: bytes) -> tuple[bytes, bytes]:
    """The first string and everything behind its NUL, as WRITE wants it.  Raises EINVAL without a NUL."""
    head, nul, rest = payload.partition(b"\0")
    if not nul:
        raise EINVAL
    return head, rest


def _magnitude(digits: bytes) -> int:
    digits = digits.lstrip(b"0")
    if len(digits) > _DIGITS_THAT_MATTER:
        return _ULONG_MAX + 1
    return int(digits or b"0")


def parse_domid(text: bytes) -> int:
    """A domid as the C daemon reads it: strtoul, the whole string, at most 65535; an empty string is 0.  Raises EINVAL."""
    if not text:
        return 0
    m = _DECIMAL.match(text)
    if m is None or m.end() != len(text):
        raise EINVAL
    value = _magnitude(m[2])
    if value > _ULONG_MAX:
        value = _ULONG_MAX
    elif m[1] == b"-":
        value = -value & _ULONG_MAX
    if value > 0xFFFF:
        raise EINVAL
    return value


def atoi(text: bytes) -> int:
    """C's atoi: leading blanks, a sign, digits, anything behind; 0 without digits; saturated to 64 bits, cut to 32."""
    m = _DECIMAL.match(text)
    if m is None:
        return 0
    value = _bounded(_magnitude(m[2]), m[1])
    return (value + 2**31) % 2**32 - 2**31


def strtol_any_base(text: bytes) -> int | None:
    """C's strtol with base 0 over the whole string, or None where it would stop early.  Saturated to 64 bits."""
    m = _ANY_BASE.match(text)
    if m is None:
        return None
    sign, hexa, octal, decimal = m.groups()
    if hexa is not None:
        hexa = hexa.lstrip(b"0")
        value = int(hexa[:17] or b"0", 16)
    elif octal is not None:
        octal = octal.lstrip(b"0")
        value = int(octal[:23] or b"0", 8)
    else:
        value = _magnitude(decimal)
    return _bounded(value, sign)


def _bounded(magnitude: int, sign: bytes) -> int:
    return max(-magnitude, -_LONG_MAX - 1) if sign == b"-" else min(magnitude, _LONG_MAX)


def printable(op: int, payload: bytes) -> str:
    """One message in a line for logs: operation's name and its payload with NULs as blanks."""
    try:
        name = Op(op).name
    except ValueError:
        name = "**UNKNOWN**"
    return f"{name} ({payload.replace(bytes(1), b' ').decode('latin1')})"
