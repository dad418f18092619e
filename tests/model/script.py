"""What a harness did, as a conformance case: a failing example becomes one that any daemon can be asked.

`Script` notes each action with what came of it; `text` writes them in the notation of docs/conformance.md.  The answers
are those that were given: where one of them was wrong, whoever adds the case says what is right.
`python -m tests.model.script NAME` adds the last failing example as a case.
"""

import re
import sys
from pathlib import Path
from typing import Final

from tests.conformance import transcript
from tests.conformance.notation import op_name, write
from tests.model.nodes import DIRECTORY_PART, OK
from tests.model.reference import ERROR, EVENT, START, Message

LAST_FAILURE: Final = Path(__file__).parents[2] / "build" / "model-failure.txt"
ADDED: Final = transcript.CASES / "found"
Said = dict[int, list[Message]]


class Script:
    """Actions in order.  Connections have numbers; a number is an actor's name, and stays so."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._names: dict[int, str] = {}
        self._sockets = 0
        self._generations: dict[bytes, int] = {}
        self._transactions: dict[tuple[int, int], str] = {}

    def opened(self, number: int, domid: int) -> None:
        """A connection: a socket of domain 0, or a domain's ring."""
        if number in self._names:
            return
        self._sockets += not domid
        first = "dom0" if self._sockets == 1 else f"dom0-{self._sockets}"
        self._names[number] = f"dom{domid}" if domid else first

    def closed(self, number: int) -> None:
        """A socket hangs up."""
        self._lines.append(f"{self._names[number]} close")

    def domain(self, domid: int, verb: str, said: Said | None = None) -> None:
        """A domain is created or destroyed."""
        self._lines.append(f"dom{domid} {verb}")
        self._others(said or {})

    def asked(self, number: int, op: int, tx_id: int, payload: bytes, said: Said) -> None:
        """A request, and what came of it."""
        known = self._transactions.get((number, tx_id), str(tx_id))
        words = [self._names[number], *(["in", known] if tx_id else []), op_name(op), write(payload)]
        self._lines.append(" ".join(filter(None, words)))
        for kind, content in said.get(number, []):
            if (kind, op) == (START, START):
                name = self._transactions[number, int(content[:-1])] = f"t{len(self._transactions) + 1}"
                self._lines.append(f"  {self._names[number]} = <{name}>|")
            elif (kind, op) == (DIRECTORY_PART, DIRECTORY_PART):
                generation, _, names = content.partition(b"\0")
                count = self._generations.setdefault(generation, len(self._generations) + 1)
                self._lines.append(f"  {self._names[number]} = <g{count}>|{write(names)}")
            else:
                self._lines.append(f"  {self._names[number]} {shown(kind, content)}")
        self._others({other: messages for other, messages in said.items() if other != number})

    def _others(self, said: Said) -> None:
        for number, messages in sorted(said.items()):
            for kind, content in messages:
                self._lines.append(f"  {self._names.get(number, f'connection-{number}')} {shown(kind, content)}")

    def text(self, name: str = "found-by-the-model", about: str = "Found by the reference model.") -> str:
        """The case."""
        # On a daemon of its own: the model speaks of the whole tree.
        return "\n".join([f"case {name}", f"  {about}", "  alone", "", *self._lines]) + "\n"

    def keep(self) -> None:
        """For `main`, which may add it."""
        LAST_FAILURE.parent.mkdir(exist_ok=True)
        LAST_FAILURE.write_text(self.text())


def shown(kind: int, content: bytes) -> str:
    """A message as it stands in a case."""
    if kind == EVENT:
        return f"event {write(content)}"
    if kind == ERROR:
        return content.rstrip(b"\0").decode()
    return "OK" if content == OK else f"= {write(content)}".rstrip()


def main() -> None:
    """Adds the last failing example."""
    (name,) = sys.argv[1:]
    assert re.fullmatch(r"[a-z0-9-]+", name), f"{name!r}: small letters, digits and dashes"
    text = LAST_FAILURE.read_text().replace("case found-by-the-model", f"case {name}")
    transcript.parse_file(text, name)
    ADDED.mkdir(exist_ok=True)
    path = ADDED / f"{name}.txt"
    path.write_text(text)
    print(f"{path}: now say in it what is right")


if __name__ == "__main__":
    main()
