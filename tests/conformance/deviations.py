"""Where this daemon answers differently from the newest C xenstored on purpose: the only list of it.

Each entry of `DEVIATIONS` names a step of a golden scenario, what this daemon answers instead, and why; each of
`EVERYWHERE` is one difference that shows in many steps.  The golden test fails on a difference that is not listed here,
on a listed one that the daemon does not show, and on one that is none any more.  `python -m
tests.conformance.golden_diff` prints what is missing here as entries that lack only their reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.conformance.scenarios import Answer, Scenario


@dataclass(frozen=True)
class Deviation:
    """`step` counts the recorded steps of the scenario from 0."""

    scenario: str
    step: int
    answer: Answer
    reason: str


@dataclass(frozen=True)
class Rewording:
    """Wherever the reference says `theirs`, this daemon says `ours`."""

    theirs: str
    ours: str
    reason: str

    def applied(self, answer: Answer) -> Answer:
        return {actor: [text.replace(self.theirs, self.ours) for text in texts] for actor, texts in answer.items()}


BLIND_WRITE = "a write without a read of the same node conflicts with nothing: there is nothing it relied on"
TWO_CREATORS = "two transactions creating different children of one node do not disturb each other"

HELP = "help lists this daemon's commands and their arguments"

MADE = "!/g/165/intx|w|"

DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        "control-texts", 2, {"S0": ["=check           \nlog             [on\\|off\\|+<swi...313:5d5e391866"]}, HELP
    ),
    Deviation("tx-snapshot", 27, {"S0": ["=OK|"]}, BLIND_WRITE),
    Deviation("tx-snapshot", 28, {"S0": ["=t"]}, BLIND_WRITE),
    Deviation("tx-snapshot", 34, {"S0": ["=OK|"]}, TWO_CREATORS),
    Deviation("tx-snapshot", 35, {"S0": ["=b|x|d2|d1|"]}, TWO_CREATORS),
    Deviation("socket-vanishes-with-pending-events", 15, {"S4": [MADE, "=OK|"], "S5": [MADE]}, TWO_CREATORS),
    Deviation("socket-vanishes-with-pending-events", 16, {"S4": [MADE], "S5": [MADE, "=OK|"]}, BLIND_WRITE),
    Deviation("socket-vanishes-with-pending-events", 17, {"S0": ["=x|intx|"]}, BLIND_WRITE),
)

EVERYWHERE: tuple[Rewording, ...] = (
    Rewording("ring features=14 ", "ring features=15 ", "a guest may begin its ring anew: bit 0 is offered on rings"),
)


def of_scenario(scenario: Scenario) -> dict[int, Deviation]:
    """The scenario's deviations by number of the step; a listed one goes before those that show everywhere."""
    found: dict[int, Deviation] = {}
    for number, step in enumerate(scenario.recorded()):
        for rewording in EVERYWHERE:
            answer = rewording.applied(step.want or {})
            if answer != step.want:
                found[number] = Deviation(scenario.name, number, answer, rewording.reason)
    return found | {deviation.step: deviation for deviation in DEVIATIONS if deviation.scenario == scenario.name}
