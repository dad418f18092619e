"""Where this daemon answers differently from the newest C xenstored on purpose: the only list of it.

Each entry names a step of a golden scenario, what this daemon answers instead, and why.  The golden player fails on a
difference that is not listed here, on a listed one that the daemon does not show, and on one that is none any more.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.conformance.player import Answer


@dataclass(frozen=True)
class Deviation:
    """`step` counts the recorded steps of the scenario from 0."""

    scenario: str
    step: int
    answer: Answer
    reason: str


BLIND_WRITE = "a write without a read of the same node conflicts with nothing: there is nothing it relied on"
TWO_CREATORS = "two transactions creating different children of one node do not disturb each other"

HELP = "help lists this daemon's commands and their arguments"

MADE = "!/g/165/intx|w|"

DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        "control-texts", 0, {"S0": ["=check           \nlog             [on\\|off\\|+<swi...313:5d5e391866"]}, HELP
    ),
    Deviation("tx-snapshot", 27, {"S0": ["=OK|"]}, BLIND_WRITE),
    Deviation("tx-snapshot", 28, {"S0": ["=t"]}, BLIND_WRITE),
    Deviation("tx-snapshot", 34, {"S0": ["=OK|"]}, TWO_CREATORS),
    Deviation("tx-snapshot", 35, {"S0": ["=b|x|d2|d1|"]}, TWO_CREATORS),
    Deviation("socket-vanishes-with-pending-events", 15, {"S4": [MADE, "=OK|"], "S5": [MADE]}, TWO_CREATORS),
    Deviation("socket-vanishes-with-pending-events", 16, {"S4": [MADE], "S5": [MADE, "=OK|"]}, BLIND_WRITE),
    Deviation("socket-vanishes-with-pending-events", 17, {"S0": ["=x|intx|"]}, BLIND_WRITE),
)
