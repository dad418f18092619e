r"""How bytes are written in transcripts, and read back.

Printable ASCII stands for itself.  `|` is NUL, `\|` and `\\` are those characters, `\n` a line feed, `\xNN` any byte, and
`\{300*ab}` is `ab` three hundred times.  A space at either end is `\x20`, and so is one before `-> `.  Raw bytes have
two marks more: `<READ 7 0 6>` is a header (operation, request id, transaction id, length; numbers may stand for names
and be hexadecimal) in the byte order of this machine, and ` + ` separates what is sent in pieces.

What was received is shown with its runs shortened and, when that is still long, by its first bytes, its length and the
beginning of its SHA-1: `entry-0000|entry-00...3960:0c2a5bd1e7`.
"""

from __future__ import annotations

import hashlib
import re

from tests.conformance.wire import HEADER, Op

SHOWN = 160
"""A received payload is shown whole up to so many characters."""
BEGINNING = 48
RUN = 10
"""Equal bytes from so many on are a run."""

_MARK = re.compile(
    r"\\x(?P<hex>[0-9a-fA-F]{2})|\\\{(?P<count>\d+)\*(?P<what>(?:\\x[0-9a-fA-F]{2}|\\[\\|n]|[^\\}])+)\}"
    r"|\\(?P<escaped>[\\|n])|(?P<nul>\|)|(?P<wrong>\\)"
)
_HEADER = re.compile(r"<(\w+) (\w+) (\w+) (\w+)>")
_PIECES = " + "


class NotationError(ValueError):
    """The text stands for no bytes."""


def op_number(name: str) -> int:
    """An operation given by its name, or as a number: `READ`, `20`, `0xffff`."""
    try:
        return Op[name].value if name in Op.__members__ else int(name, 0)
    except ValueError as error:
        raise NotationError(f"no operation {name!r}") from error


def op_name(number: int) -> str:
    """The operation's name, or its number where it has none."""
    return Op(number).name if number <= max(Op) else str(number)


def parse(text: str) -> bytes:
    """The bytes that the text stands for."""

    def one(mark: re.Match[str]) -> str:
        if mark["wrong"]:
            raise NotationError(f"a lone backslash in {text!r}")
        if mark["hex"]:
            return chr(int(mark["hex"], 16))
        if mark["count"]:
            return _MARK.sub(one, mark["what"]) * int(mark["count"])
        if mark["nul"]:
            return "\0"
        return "\n" if mark["escaped"] == "n" else str(mark["escaped"])

    return _MARK.sub(one, text).encode("latin-1")


def show(payload: bytes) -> str:
    """The payload as text; long ones by beginning, length and digest."""
    text = write(payload)
    if len(text) <= SHOWN:
        return text
    digest = hashlib.sha1(payload, usedforsecurity=False).hexdigest()
    return f"{write(payload[:BEGINNING])}...{len(payload)}:{digest[:10]}"


def write(payload: bytes) -> str:
    """The payload as text, whole."""
    runs = re.compile(rb"(.)\1{%d,}" % (RUN - 1), re.DOTALL)
    text, at = "", 0
    for run in runs.finditer(payload):
        text += _plain(payload[at : run.start()]) + f"\\{{{len(run[0])}*{_letter(run[1][0], in_run=True)}}}"
        at = run.end()
    text += _plain(payload[at:])
    if text.startswith(" "):
        text = "\\x20" + text[1:]
    if text.endswith(" "):
        text = text[:-1] + "\\x20"
    return text.replace(" ->", "\\x20->").replace("...", "\\x2e..")


def _plain(payload: bytes) -> str:
    return "".join(_letter(byte) for byte in payload)


def _letter(byte: int, *, in_run: bool = False) -> str:
    match chr(byte):
        case "\0":
            return "|"
        case "\n":
            return "\\n"
        case "\\" | "|" as letter:
            return "\\" + letter
        case " " | "}" as letter:
            return f"\\x{byte:02x}" if in_run else letter
        case letter:
            return letter if letter.isascii() and letter.isprintable() else f"\\x{byte:02x}"


# ---- raw bytes


def parse_raw(text: str) -> list[bytes]:
    """The pieces of what is sent as it is."""

    def piece(text: str) -> bytes:
        data, at = b"", 0
        for header in _HEADER.finditer(text):
            words = [op_number(header[1]), *(int(word, 0) for word in header.groups()[1:])]
            data += parse(text[at : header.start()]) + HEADER.pack(*words)
            at = header.end()
        return data + parse(text[at:])

    return [piece(part) for part in text.split(_PIECES)]


def write_raw(pieces: list[bytes]) -> str:
    """Pieces as text; a piece that begins like a message is written with its header."""
    return _PIECES.join(_raw_piece(piece) for piece in pieces)


def _raw_piece(piece: bytes) -> str:
    def plain(data: bytes) -> str:
        return write(data).replace("<", "\\x3c").replace(_PIECES, "\\x20+ ")

    text = ""
    while len(piece) >= HEADER.size:
        op, req_id, tx_id, length = HEADER.unpack_from(piece)
        if op > 0xFF:
            break
        text += f"<{op_name(op)} {req_id} {tx_id if tx_id < 0xFFFF else hex(tx_id)} {length}>"
        text += plain(piece[HEADER.size : HEADER.size + length])
        piece = piece[HEADER.size + length :]
    return text + plain(piece)
