"""The golden corpus as data: scenarios of steps with recorded answers, and the notation they are written in.

A scenario is a list of steps of named actors on paths and domids of its own, with what the newest C xenstored
answered to each (`golden/*.jsonl`): S0, S1, ... are socket connections, G1, G2, ... guests on rings, R0 is domain 0's
own ring.  A step without an answer prepares and is not compared; `A` is the player's own connection, which only
prepares.  Operations that begin with @ are special (`special.py`).

Notation, in requests and answers alike: `|` is NUL, `\\|` and `\\\\` are those characters themselves; in requests
`\\{300*x}` is a run.  An answer is a list per actor, in order of arrival: `=` reply, `E:` error, `!` watch event,
`TIMEOUT`, `CLOSED`.  Transaction ids are `<T1>`..., generation counts `<g1>`... in order of first appearance;
long payloads are shown by their beginning, length and SHA-1.  What differs from run to run is compared loosely.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHOWN = 160
LAST = "last"
"""The file whose scenarios change what all others start from."""

Answer = dict[str, list[str]]


def any_error(message: str) -> str:
    """Which error it is depends on what stands in for Xen."""
    return "E:*" if message.startswith("E:") else message


def any_numbers(message: str) -> str:
    """Counts of the whole daemon, which earlier scenarios have a part in; long ones by their beginning."""
    return re.sub(r" *\d+", " #", re.sub(r"\.\.\.\d+:.*", "", message))


LOOSE: dict[str, Callable[[str], str]] = {"": str, "any error": any_error, "any numbers": any_numbers}


@dataclass(frozen=True)
class Step:
    """One request or special act of one actor, and what the reference answered (None: not compared)."""

    actor: str
    op: str
    payload: Any = None
    tx: int | str = 0
    save: str = ""
    loose: str = ""
    want: Answer | None = None

    def __str__(self) -> str:
        payload = self.payload if isinstance(self.payload, str) else json.dumps(self.payload)
        text = f"{self.actor} {self.op}"
        if self.payload not in (None, ""):
            text += f" {payload if len(payload) <= SHOWN else payload[:SHOWN] + '...'}"
        return text + (f"  [transaction {self.tx}]" if self.tx else "")

    def agrees(self, got: Answer, want: Answer) -> bool:
        """Whether this answer to the step is as good as that."""
        soften = LOOSE[self.loose]
        return got.keys() == want.keys() and all(
            [soften(message) for message in messages] == [soften(message) for message in want[actor]]
            for actor, messages in got.items()
        )


@dataclass
class Scenario:
    """A named list of steps below `root`, which the player makes and removes; `after` puts settings back."""

    name: str
    root: str
    after: list[tuple[str, str]]
    steps: list[Step] = field(default_factory=list)

    def recorded(self) -> list[Step]:
        """The steps that are compared; their numbers count from 0."""
        return [step for step in self.steps if step.want is not None]

    def needs_xen(self) -> bool:
        """Whether guests, or rings at all, play in it."""
        return any(step.actor[0] in "GR" for step in self.steps)


def load(folder: Path) -> list[Scenario]:
    """The scenarios of every `*.jsonl` in the folder, in the order in which they are to be played."""
    scenarios: list[Scenario] = []
    for file in sorted(folder.glob("*.jsonl"), key=lambda file: (file.stem == LAST, file.stem)):
        for line in file.read_text(encoding="ascii").splitlines():
            record = json.loads(line)
            if "scenario" in record:
                after = [(op, payload) for op, payload in record.get("after", [])]
                scenarios.append(Scenario(record["scenario"], record["root"], after))
            else:
                scenarios[-1].steps.append(Step(**record))
    return scenarios


def parse(text: str) -> bytes:
    """The bytes that the notation stands for."""

    def one(match: re.Match[str]) -> str:
        if match["count"]:
            return match["what"] * int(match["count"])
        return match["escaped"] or "\0"

    pattern = r"\\\{(?P<count>\d+)\*(?P<what>.)\}|\\(?P<escaped>[\\|])|\|"
    return re.sub(pattern, one, text).encode("latin-1")


def show(payload: bytes) -> str:
    """A payload in the notation, shortened when it is long."""
    text = payload.decode("latin-1").replace("\\", "\\\\").replace("|", "\\|").replace("\0", "|")
    if len(text) <= SHOWN:
        return text
    digest = hashlib.sha1(payload, usedforsecurity=False).hexdigest()
    return f"{text[:48]}...{len(payload)}:{digest[:10]}"
