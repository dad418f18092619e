"""Why daemons differ: `cases/reasons.txt`, whose names the cases use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.conformance.transcript import CASES, TranscriptError


@dataclass
class Reason:
    """A named difference: whose it is, in words, where that can be seen, and what ended it."""

    name: str
    who: str = ""
    text: str = ""
    source: str = ""
    fixed: str = ""


def load_reasons(path: Path = CASES / "reasons.txt") -> dict[str, Reason]:
    """All of them, by name, in the order of the file."""
    reasons: dict[str, Reason] = {}
    for number, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
        word, _, rest = line.strip().partition(" ")
        if not word or word.startswith("#"):
            continue
        if line.startswith("reason "):
            last = reasons[rest] = Reason(rest)
        elif not reasons:
            raise TranscriptError(f"{path}:{number}: before the first reason")
        elif word in ("who:", "source:", "fixed:"):
            setattr(last, word[:-1], rest)
        else:
            last.text = f"{last.text} {line.strip()}".lstrip()
    return reasons
