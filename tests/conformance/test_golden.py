"""The golden corpus: every scenario that needs only sockets, against what the newest C xenstored answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.conftest import UnderTest
from tests.conformance.deviations import DEVIATIONS, Deviation
from tests.conformance.player import TIMEOUT, Answer, Player, Scenario, load, parse, show

SCENARIOS = load(Path(__file__).parent / "golden")
TABLE: dict[tuple[str, int], Deviation] = {(d.scenario, d.step): d for d in DEVIATIONS}


def lines(title: str, answer: Answer, other: Answer) -> list[str]:
    """What one side said on the connections where the sides differ."""
    return [
        f"        {title} {actor}: {answer.get(actor, [])}"
        for actor in sorted(answer.keys() | other.keys())
        if answer.get(actor) != other.get(actor)
    ]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_daemon_answers_as_the_newest_c_xenstored(daemon: UnderTest, scenario: Scenario) -> None:
    complaints: list[str] = []
    for number, step, got in Player(daemon.socket).play(scenario):
        assert step.want is not None
        deviation = TABLE.get((scenario.name, number)) if daemon.is_ours else None
        if deviation is None and got != step.want:
            complaints += [f"[{number}] {step}", *lines("expected", step.want, got), *lines("got     ", got, step.want)]
        elif deviation is not None and got == step.want:
            complaints += [f"[{number}] {step}", f"        no deviation any more: {deviation.reason}"]
        elif deviation is not None and got != deviation.answer:
            complaints += [
                f"[{number}] {step}   (deviation: {deviation.reason})",
                *lines("expected", deviation.answer, got),
                *lines("got     ", got, deviation.answer),
            ]
        if complaints and any(TIMEOUT in messages for messages in got.values()):
            complaints.append("        and no further: it does not answer")
            break
    if complaints:
        pytest.fail(f"{scenario.name}:\n" + "\n".join(complaints), pytrace=False)


def test_every_deviation_names_a_recorded_step_and_differs_from_it() -> None:
    recorded = {s.name: [step for step in s.steps if step.want is not None] for s in SCENARIOS}
    assert len(TABLE) == len(DEVIATIONS), "a step is listed twice"
    for deviation in DEVIATIONS:
        assert deviation.reason
        assert recorded[deviation.scenario][deviation.step].want != deviation.answer


def test_the_notation_is_read_as_it_is_written() -> None:
    assert parse(r"/a|\||\\|\{3*x}y") == b"/a\0|\0\\\0xxxy"
    assert show(b"/a\0|\0\\") == r"/a|\||\\"
    assert parse(show(bytes(range(64)))) == bytes(range(64))
