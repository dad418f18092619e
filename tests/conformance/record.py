"""Fills in what a daemon answers: the way to write a case.

    python -m tests.conformance.record tests/conformance/cases/new.txt              steps get this daemon's answers
    python -m tests.conformance.record --daemon c tests/conformance/cases/new.txt   differences are added as `c-4.17:`

Whoever wrote the steps then reads the file: a recorded answer is what a daemon does, not yet what is right.  A difference
is recorded with the reason `unexplained`, to be replaced by a name in `reasons.txt`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tests.conformance.player import FEATURES
from tests.conformance.subject import KINDS, LIKE_OF, UnderTest
from tests.conformance.transcript import DIES, LIKE, Answer, Case, Other, Step, agrees, parse_file, write_case
from tests.conformance.wire import Closed
from tests.oracle.daemons import short_run_dir

PATIENCE = 1.0
"""Seconds for an answer: what does not come in that time is recorded as silence."""
UNEXPLAINED = "unexplained"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--daemon", choices=KINDS, default="ours")
    parser.add_argument("--over", action="store_true", help="replace this daemon's answers that stand there")
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args()
    kind = KINDS[options.daemon]
    for file in options.files:
        head, cases = read(file)
        with ExitStack() as stack:
            process = stack.enter_context(kind(stack.enter_context(short_run_dir())))
            daemon = UnderTest(process.socket, process)
            for case in cases:
                if LIKE_OF[kind] != "ours":
                    record_difference(daemon, case, over=options.over)
                elif options.over or not any(step.want for step in case.steps):
                    case.steps = record(daemon, case)
        write(file, head, cases)
    return 0


def read(file: Path) -> tuple[str, list[Case]]:
    """The comment at the beginning, and the cases."""
    text = file.read_text(encoding="ascii")
    begin = ("\n" + text).index("\ncase ")
    return text[:begin], parse_file(text, str(file))


def write(file: Path, head: str, cases: list[Case]) -> None:
    file.write_text(head + "\n".join(map(write_case, cases)), encoding="ascii")


def record(daemon: UnderTest, case: Case) -> list[Step]:
    """The steps with what this daemon answered."""
    return [
        replace(step, want=_with_names(got, "ours")) for step, got in zip(case.steps, _play(daemon, case), strict=True)
    ]


def record_difference(daemon: UnderTest, case: Case, *, over: bool) -> None:
    """Adds to the case what this daemon answers differently."""
    label = LIKE[daemon.kind][0]
    answers = _play(daemon, case)
    for number, got in enumerate(answers):
        step = case.steps[number]
        said = step.expected(LIKE[daemon.kind])
        if said.label and not over:
            continue
        others = tuple(other for other in step.others if other.label != label)
        if not agrees(_features(got, daemon.kind), _features(step.want, daemon.kind)):
            others += (Other(label, said.reason or UNEXPLAINED, _with_names(got, daemon.kind)),)
        case.steps[number] = replace(step, others=others)
    if not daemon.serves():
        last = case.steps[len(answers) - 1 if len(answers) == len(case.steps) else len(answers)]
        others = tuple(other for other in last.others if other.label != label)
        others += (Other(label, UNEXPLAINED, {last.actor: [DIES]}),)
        case.steps[case.steps.index(last)] = replace(last, others=others)
    if case.alone or not daemon.serves():
        daemon.begin_anew()


def _play(daemon: UnderTest, case: Case) -> list[Answer]:
    """What came of each step, to the last one that the daemon survived."""
    answers = []
    player = daemon.player()
    player.labels, player.patience = (), PATIENCE
    if daemon.wants_to_be_fresh(case):
        daemon.begin_anew()
    try:
        for played in player.play(case):
            answers.append(played.got)
    except (OSError, Closed, AssertionError) as error:
        print(f"{case.name}: ended after {len(answers)} steps: {error}", file=sys.stderr)
    return answers


def _features(answer: Answer, kind: str) -> Answer:
    return _replaced(answer, {"features=<features>": f"features={FEATURES[kind]}"})


def _with_names(answer: Answer, kind: str) -> Answer:
    return _replaced(answer, {f"ring features={FEATURES[kind]} ": "ring features=<features> "})


def _replaced(answer: Answer, words: Mapping[str, str]) -> Answer:
    def one(message: str) -> str:
        for old, new in words.items():
            message = message.replace(old, new)
        return message

    return {actor: [one(message) for message in messages] for actor, messages in answer.items()}


if __name__ == "__main__":
    sys.exit(main())
