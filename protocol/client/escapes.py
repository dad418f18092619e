r"""Values as text for terminals and back, in the notation of Xen's command-line tools.

Printable ASCII stands for itself, `\t`, `\n`, `\r` and `\\` for themselves as in C; any other byte is `\ooo` (three
octal digits) below 8 and `\xhh` above.  `unescape` is more liberal than `escape`.
"""

import re
from typing import Final

_NAMED: Final = {b"\t": b"\\t", b"\n": b"\\n", b"\r": b"\\r", b"\\": b"\\\\"}
_BYTES: Final = {escape[1:]: byte for byte, escape in _NAMED.items()}
_UNPRINTABLE: Final = re.compile(rb"[^ -\[\]-~]")
_ESCAPE: Final = re.compile(rb"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(.?))", re.DOTALL)


def escape(value: bytes) -> str:
    """The value as printable ASCII."""
    return _UNPRINTABLE.sub(_escape_byte, value).decode("ascii")


def unescape(text: str) -> bytes:
    r"""The value that `text` denotes; a backslash before any other character denotes that character.

    Raises ValueError for `\x` without a digit, an octal number above 0377, and a backslash at the end.
    """
    return _ESCAPE.sub(_unescape_match, text.encode("utf-8", "surrogateescape"))


def _escape_byte(match: re.Match[bytes]) -> bytes:
    byte = match[0]
    return _NAMED.get(byte) or (b"\\%03o" if byte < b"\x08" else b"\\x%02x") % byte[0]


def _unescape_match(match: re.Match[bytes]) -> bytes:
    hexadecimal, octal, other = match.groups()
    if hexadecimal is not None:
        return bytes([int(hexadecimal, 16)])
    if octal is not None and int(octal, 8) <= 0xFF:
        return bytes([int(octal, 8)])
    if octal is not None or other in {b"", b"x"}:
        raise ValueError(f"{match[0].decode('ascii')} is not an escape sequence")
    return _BYTES.get(other, other)
