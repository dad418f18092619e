"""Conformance cases as text: what stands in `cases/**.txt`, read into cases and written back.

A case is a name, a few words about it, and steps; a step is what one actor does and the messages that everybody then
gets, in order.  `docs/conformance.md` has the grammar.  This module knows the form only: `player.py` does what a case
says, and `notation.py` reads the bytes.

A message is kept as the text it is written with: `OK` (the acknowledgement), `= VALUE` (a reply), `ENOENT` (an error),
`event PATH|TOKEN|`, `silence` (no answer), `closed` (the daemon hung up), and what `verbs.py` reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

CASES = Path(__file__).parent / "cases"
ROOT = "/t"
"""The tree a case has for itself, unless it says otherwise."""
TOOLSTACK = "toolstack"
"""The actor that prepares: its answers are compared only where they are stated."""
XEN = "xen"
"""The actor that no message comes to: the hypervisor."""
SILENCE, CLOSED, ANYTHING, NOTHING = "silence", "closed", "anything", "nothing"
DIES = "dies"
"""After this the daemon serves nobody any more, and the case ends."""
AN_ERROR = "an error"
"""Any error will do."""

LABELS = ("c", "c-4.17", "c-head", "oxenstored", "ours")
"""Whose answers may be stated beside the first one."""
LIKE = {
    "strict": (),
    "ours": ("ours",),
    "c": ("c-4.17", "c"),
    "c-head": ("c-head", "c"),
    "oxenstored": ("oxenstored",),
}
"""Which labels count for a daemon of that kind, the first one that a step has."""

Answer = dict[str, list[str]]
"""Messages by actor, in order of arrival; no actor without any."""


class TranscriptError(ValueError):
    """The text is no transcript."""


@dataclass(frozen=True)
class Other:
    """What a certain daemon answers instead; `reason` is a name in `reasons.txt`."""

    label: str
    reason: str
    answer: Answer

    @property
    def fatal(self) -> bool:
        """The daemon is not expected to survive."""
        return any(DIES in messages for messages in self.answer.values())


@dataclass(frozen=True)
class Step:
    """What one actor does, and what everybody then gets."""

    actor: str
    verb: str
    argument: str = ""
    tx: str = ""
    want: Answer = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    others: tuple[Other, ...] = ()
    line: int = 0

    @property
    def is_request(self) -> bool:
        """Operations are written in capitals or as numbers, everything else in small letters."""
        return not self.verb[0].islower()

    def expected(self, labels: Iterable[str]) -> Other:
        """What a daemon with these labels answers; the label is empty where it is what all answer."""
        for label in labels:
            for other in self.others:
                if other.label == label:
                    return other
        return Other("", "", self.want)

    def act(self) -> str:
        """The step as it is written, without what follows."""
        words = [
            self.actor,
            *(["in", self.tx] if self.tx else []),
            self.verb,
            *([self.argument] if self.argument else []),
        ]
        return " ".join(words)


def agrees(got: Answer, want: Answer) -> bool:
    """Whether these messages are as good as those."""
    if Other("", "", want).fatal:
        return True  # whoever runs the daemon looks whether it is alive
    free = {actor for actor, messages in want.items() if ANYTHING in messages}
    got = {actor: messages for actor, messages in got.items() if actor not in free}
    want = {actor: messages for actor, messages in want.items() if actor not in free}
    return got.keys() == want.keys() and all(
        len(messages) == len(want[actor]) and all(map(_same, messages, want[actor])) for actor, messages in got.items()
    )


def _same(got: str, want: str) -> bool:
    if want == AN_ERROR:
        return got.partition(" ")[0].isupper() and got != "OK"
    if want.startswith("~ "):
        return _without_numbers(got) == _without_numbers(want[2:])
    return got == want


def _without_numbers(message: str) -> str:
    """A message with counts of the whole daemon in it; a long one by its beginning."""
    return re.sub(r"\s*\d+", " #", re.sub(r"\.\.\.\d+:.*", "", message))


@dataclass
class Case:
    """A named list of steps below `root`; `after` are requests that put settings back."""

    name: str
    about: list[str] = field(default_factory=list)
    cites: list[str] = field(default_factory=list)
    root: str = ROOT
    after: list[str] = field(default_factory=list)
    alone: bool = False
    """It changes what all other cases begin with."""
    steps: list[Step] = field(default_factory=list)
    file: str = ""

    def actors(self) -> set[str]:
        return {step.actor for step in self.steps}

    def may_end(self, labels: Iterable[str]) -> bool:
        """Whether a daemon with these labels is known not to survive it."""
        return any(step.expected(labels).fatal for step in self.steps)

    def needs_rings(self) -> bool:
        """Whether somebody sits at a ring."""
        return any(is_ring(actor) for actor in self.actors())

    def needs_domains(self) -> bool:
        """Whether domains begin and end in it."""
        return XEN in self.actors() or any(is_guest(actor) for actor in self.actors())


def is_guest(actor: str) -> bool:
    """`dom5`: a domain other than 0, at its ring."""
    return re.fullmatch(r"dom[1-9]\d*", actor) is not None


def is_ring(actor: str) -> bool:
    return actor == "dom0-ring" or is_guest(actor)


def is_socket(actor: str) -> bool:
    """`dom0`, `dom0-2`, ...: domain 0's connections over the socket."""
    return re.fullmatch(r"dom0(-[2-9])?", actor) is not None


# ---- reading


def load(folder: Path = CASES) -> list[Case]:
    """All cases below the folder, those that must be alone at the end."""
    cases = [
        case
        for path in sorted(folder.rglob("*.txt"))
        if path.name != "reasons.txt"
        for case in parse_file(path.read_text(encoding="ascii"), str(path.relative_to(folder)))
    ]
    return sorted(cases, key=lambda case: case.alone)


def parse_file(text: str, file: str = "") -> list[Case]:
    """The cases of one file. Raises TranscriptError, which names the line."""
    cases: list[Case] = []
    heading = False
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            heading = heading and bool(line.strip())
            continue
        try:
            if line.startswith("case "):
                cases.append(Case(line[5:].strip(), file=file))
                heading = True
            elif heading and line.startswith(" "):
                _heading(cases[-1], line.strip())
            elif line.startswith(" "):
                cases[-1].steps[-1] = _more(cases[-1].steps[-1], line)
            else:
                heading = False
                cases[-1].steps.append(_step(line, number))
        except (TranscriptError, IndexError) as error:
            raise TranscriptError(f"{file}:{number}: {error}: {line}") from error
    return cases


def _heading(case: Case, line: str) -> None:
    key, colon, rest = line.partition(": ")
    if line == "alone":
        case.alone = True
    elif colon and key == "cites":
        case.cites += [cite.strip() for cite in rest.split(";")]
    elif colon and key == "root":
        case.root = rest
    elif colon and key == "after":
        case.after.append(rest)
    else:
        case.about.append(line)


def _split(line: str) -> tuple[str, str | None]:
    """What stands before the arrow, and the message behind it."""
    before, arrow, after = re.sub(r"\s*(?<!\S)->(?= |$)", "\0", line, count=1).partition("\0")
    return before.rstrip(), after.strip() if arrow else None


def _step(line: str, number: int) -> Step:
    before, message = _split(line)
    match = re.fullmatch(r"(?P<actor>\S+)(?: in (?P<tx>\S+))? (?P<verb>\S+)(?: (?P<argument>.+))?", before)
    if match is None:
        raise TranscriptError("neither a step nor a message")
    actor, verb = match["actor"], match["verb"]
    if not (is_socket(actor) or is_ring(actor) or actor in (TOOLSTACK, XEN)):
        raise TranscriptError(f"nobody is called {actor}")
    want: Answer = {} if message in (None, NOTHING) else {actor: [str(message)]}
    return Step(actor, verb, match["argument"] or "", match["tx"] or "", want, line=number)


def _more(step: Step, line: str) -> Step:
    """The step with what this line adds to it."""
    text = line.strip()
    if text.startswith("> "):
        return replace(step, parts=(*step.parts, text[2:]))
    if other := re.fullmatch(rf"({'|'.join(map(re.escape, LABELS))})(?: \(([\w-]+)\))?:(.*)", text):
        _, message = _split(other[3] or "")
        answer = {step.actor: [message]} if message is not None and message != NOTHING else {}
        return replace(step, others=(*step.others, Other(other[1], other[2] or "", answer)))
    actor, _, message = text.partition(" ")
    if not message:
        raise TranscriptError("not a message")
    if line.startswith("    "):
        if not step.others:
            raise TranscriptError("whose answer is this")
        last = step.others[-1]
        return replace(step, others=(*step.others[:-1], replace(last, answer=_with(last.answer, actor, message))))
    return replace(step, want=_with(step.want, actor, message))


def _with(answer: Answer, actor: str, message: str) -> Answer:
    return answer | {actor: [*answer.get(actor, []), message]}


# ---- writing


def write_case(case: Case) -> str:
    """The case as text."""
    lines = [f"case {case.name}", *(f"  {line}" for line in case.about)]
    if case.cites:
        lines.append(f"  cites: {'; '.join(case.cites)}")
    if case.root != ROOT:
        lines.append(f"  root: {case.root}")
    lines += [f"  after: {request}" for request in case.after]
    lines += ["  alone"] if case.alone else []
    lines.append("")
    acts = [len(step.act()) for step in case.steps if len(step.act()) <= 60]
    width = max(acts, default=0)
    for step in case.steps:
        lines += write_step(step, width)
    return "\n".join(lines) + "\n"


def write_step(step: Step, width: int = 0) -> Iterator[str]:
    """The step as lines."""
    act = step.act()
    want = dict(step.want)
    own = want.get(step.actor, [])
    if own and not own[0].startswith("event ") and not step.parts:
        yield f"{act.ljust(width)}  -> {own[0]}"
        want[step.actor] = own[1:]
    else:
        yield act
    yield from (f"  > {part}" for part in step.parts)
    yield from _messages(want, "  ")
    for other in step.others:
        label = f"  {other.label}{f' ({other.reason})' if other.reason else ''}:"
        if not other.answer:
            yield f"{label} -> {NOTHING}"
        elif list(other.answer) == [step.actor] and len(other.answer[step.actor]) == 1:
            yield f"{label} -> {other.answer[step.actor][0]}"
        else:
            yield label
            yield from _messages(other.answer, "    ")


def _messages(answer: Answer, indent: str) -> Iterator[str]:
    for actor, messages in answer.items():
        yield from (f"{indent}{actor} {message}" for message in messages)
