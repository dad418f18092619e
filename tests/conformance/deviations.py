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

CONFLICT = "a commit fails only if an answer, an access decision or a resulting permission list would be another"
FEATURES = "bit 0 (RECONNECTION) is offered on rings"
ANEW = "a guest that sets `connection` to 1 gets a fresh connection"
REVIVED = "a ring that misbehaved works again once it is introduced again"
PUBLISHED = "an introduction publishes the features again and clears the error"
OWN_INDICES = "the daemon's indices in the page are copies; a guest that moves them is not followed"
ORDER = "events go before the reply of the request that caused them, here as everywhere"
STALE = "the error is the one of this request, not a stale one"
HELP = "help lists this daemon's commands and their arguments"

MADE = "!/g/165/intx|w|"

DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        "control-texts", 2, {"S0": ["=check           \nlog             [on\\|off\\|+<swi...481:807e09ca06"]}, HELP
    ),
    Deviation("tx-snapshot", 27, {"S0": ["=OK|"]}, BLIND_WRITE),
    Deviation("tx-snapshot", 28, {"S0": ["=t"]}, BLIND_WRITE),
    Deviation("tx-snapshot", 34, {"S0": ["=OK|"]}, TWO_CREATORS),
    Deviation("tx-snapshot", 35, {"S0": ["=b|x|d2|d1|"]}, TWO_CREATORS),
    Deviation("socket-vanishes-with-pending-events", 15, {"S4": [MADE, "=OK|"], "S5": [MADE]}, TWO_CREATORS),
    Deviation("socket-vanishes-with-pending-events", 16, {"S4": [MADE], "S5": [MADE, "=OK|"]}, BLIND_WRITE),
    Deviation("socket-vanishes-with-pending-events", 17, {"S0": ["=x|intx|"]}, BLIND_WRITE),
    Deviation("dom-features", 1, {"S0": ["=15|"]}, FEATURES),
    Deviation("dom-features", 2, {"S0": ["=15|"]}, FEATURES),
    Deviation("dom-features", 3, {"S0": ["=15|"]}, FEATURES),
    Deviation("dom-features", 10, {"S0": ["=OK|"]}, FEATURES),
    Deviation("dom-features", 11, {"S0": ["=1|"]}, FEATURES),
    Deviation("dom-features", 13, {"S0": ["=1|"]}, FEATURES),
    Deviation("dom-features", 15, {"S0": ["=1|"]}, FEATURES),
    Deviation("dom-features", 41, {"G2": ["=15|"]}, FEATURES),
    Deviation("dom-features", 43, {"S0": ["=15|"]}, FEATURES),
    Deviation("payload-get_feature-s", 1, {"S0": ["=15|"]}, FEATURES),
    Deviation("payload-get_feature-s", 9, {"S0": ["=15|"]}, FEATURES),
    Deviation("payload-get_feature-g", 0, {"G1": ["=15|"]}, FEATURES),
    Deviation("payload-get_feature-g", 2, {"G1": ["=15|"]}, FEATURES),
    Deviation("ring0-basic", 18, {"R0": ["=15|"]}, FEATURES),
    Deviation("dom-reintroduce", 8, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, ANEW),
    Deviation("dom-reintroduce", 10, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, ANEW),
    Deviation("ring-connection-1", 3, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, ANEW),
    Deviation("ring-connection-1", 5, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, ANEW),
    Deviation("ring-connection-1", 6, {"S0": ["=OK|"]}, ANEW),
    Deviation("ring-req-prod-1025", 10, {"S0": ["=OK|"]}, REVIVED),
    Deviation("ring-req-prod-1025", 11, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, REVIVED),
    Deviation("ring-req-prod-1025", 12, {"G1": ["=/local/domain/1|"]}, REVIVED),
    Deviation("ring-req-prod-behind", 10, {"S0": ["=OK|"]}, REVIVED),
    Deviation("ring-req-prod-behind", 11, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, REVIVED),
    Deviation("ring-req-prod-behind", 12, {"G1": ["=/local/domain/1|"]}, REVIVED),
    Deviation("ring-req-prod-huge", 10, {"S0": ["=OK|"]}, REVIVED),
    Deviation("ring-req-prod-huge", 11, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, REVIVED),
    Deviation("ring-req-prod-huge", 12, {"G1": ["=/local/domain/1|"]}, REVIVED),
    Deviation("ring-rsp-cons-ahead", 12, {"S0": ["=OK|"]}, REVIVED),
    Deviation("ring-rsp-cons-ahead", 13, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, REVIVED),
    Deviation("ring-rsp-cons-ahead", 14, {"G1": ["=/local/domain/1|"]}, REVIVED),
    Deviation("ring-rsp-cons-far-behind", 12, {"S0": ["=OK|"]}, REVIVED),
    Deviation("ring-rsp-cons-far-behind", 13, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, REVIVED),
    Deviation("ring-rsp-cons-far-behind", 14, {"G1": ["=/local/domain/1|"]}, REVIVED),
    Deviation("ring-len-4097", 11, {"S0": ["=OK|"]}, REVIVED),
    Deviation("ring-len-4097", 12, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, REVIVED),
    Deviation("ring-len-4097", 13, {"G1": ["=/local/domain/1|"]}, REVIVED),
    Deviation("ring-len-huge", 11, {"S0": ["=OK|"]}, REVIVED),
    Deviation("ring-len-huge", 12, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, REVIVED),
    Deviation("ring-len-huge", 13, {"G1": ["=/local/domain/1|"]}, REVIVED),
    Deviation("ring-len-5000-unknown-op", 11, {"S0": ["=OK|"]}, REVIVED),
    Deviation("ring-len-5000-unknown-op", 12, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, REVIVED),
    Deviation("ring-len-5000-unknown-op", 13, {"G1": ["=/local/domain/1|"]}, REVIVED),
    Deviation("ring-half-header", 11, {"S0": ["=OK|"]}, REVIVED),
    Deviation("ring-half-header", 12, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, REVIVED),
    Deviation("ring-half-header", 13, {"G1": ["=/local/domain/1|"]}, REVIVED),
    Deviation(
        "ring-server-fields-overwritten", 11, {"G1": ["ring features=15 connection=0 error=0 unread=0"]}, PUBLISHED
    ),
    Deviation("ring-index-wrap", 3, {"G1": ["ring features=15 connection=0 error=2 unread=0"]}, OWN_INDICES),
    Deviation("ring-index-wrap", 4, {"G1": ["TIMEOUT"]}, OWN_INDICES),
    Deviation("ring-index-wrap", 5, {"G1": ["TIMEOUT"]}, OWN_INDICES),
    Deviation("ring-index-wrap", 6, {"G1": ["TIMEOUT"]}, OWN_INDICES),
    Deviation("ring-index-wrap", 7, {"G1": ["TIMEOUT"]}, OWN_INDICES),
    Deviation("ring-index-wrap", 8, {"G1": ["TIMEOUT"]}, OWN_INDICES),
    Deviation("ring-index-wrap", 9, {"G1": ["TIMEOUT"]}, OWN_INDICES),
    Deviation("ring-index-wrap", 10, {"G1": ["ring features=15 connection=0 error=2 unread=1024"]}, OWN_INDICES),
    Deviation(
        "last-release-node-perms", 7, {"S0": ["!@releaseDomain|s|", "=OK|"], "G1": ["!@releaseDomain|g1|"]}, ORDER
    ),
    Deviation("quota-memory", 11, {"G1": ["E:ENOMEM"]}, STALE),
    Deviation("tx-conflicts-s0", 43, {"S0": ["=OK|"], "S1": ["!/g/105/c3/d/v|w3|", "!/g/105/c3/mark|w3|"]}, CONFLICT),
    Deviation("tx-conflicts-s0", 44, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-s0", 55, {"S0": ["=OK|"], "S1": ["!/g/105/c4/mark|w4|"]}, CONFLICT),
    Deviation("tx-conflicts-s0", 56, {"S0": ["=d|e|n1|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-s0", 79, {"S0": ["=OK|"], "S1": ["!/g/105/c6/d/v|w6|", "!/g/105/c6/mark|w6|"]}, CONFLICT),
    Deviation("tx-conflicts-s0", 80, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-s0", 81, {"S0": ["=u|"]}, CONFLICT),
    Deviation("tx-conflicts-s0", 82, {"S0": ["E:ENOENT"]}, CONFLICT),
    Deviation("tx-conflicts-s0", 91, {"S0": ["=OK|"], "S1": ["!/g/105/c7/mark|w7|"]}, CONFLICT),
    Deviation("tx-conflicts-s0", 92, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-s0", 154, {"S0": ["=OK|"], "S1": ["!/g/105/c12/mark|w12|"]}, CONFLICT),
    Deviation("tx-conflicts-s0", 155, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 43, {"S0": ["=OK|"], "S1": ["!/g/106/c3/mark|w3|"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 44, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 65, {"S0": ["=u|v|"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 67, {"S0": ["=OK|"], "S1": ["!/g/106/c5/d/v|w5|", "!/g/106/c5/mark|w5|"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 68, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 69, {"S0": ["=u|v|"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 70, {"S0": ["=1"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 79, {"S0": ["=OK|"], "S1": ["!/g/106/c6/d|w6|", "!/g/106/c6/mark|w6|"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 80, {"S0": ["=e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 81, {"S0": ["E:ENOENT"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 82, {"S0": ["E:ENOENT"]}, CONFLICT),
    Deviation(
        "tx-conflicts-s1", 91, {"S0": ["=OK|"], "S1": ["!/g/106/c7/d/later|w7|", "!/g/106/c7/mark|w7|"]}, CONFLICT
    ),
    Deviation("tx-conflicts-s1", 92, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 93, {"S0": ["=v|u|"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 158, {"S0": ["=OK|"], "S1": ["!/g/106/c12/mark|w12|"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 159, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation(
        "tx-conflicts-s1", 170, {"S0": ["=OK|"], "S1": ["!/g/106/c13/d/nn|w13|", "!/g/106/c13/mark|w13|"]}, CONFLICT
    ),
    Deviation("tx-conflicts-s1", 171, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-s1", 172, {"S0": ["=v|u|nn|"]}, CONFLICT),
    Deviation("tx-conflicts-s2", 31, {"S0": ["=OK|"], "S1": ["!/g/107/c2/d/v|w2|", "!/g/107/c2/mark|w2|"]}, CONFLICT),
    Deviation("tx-conflicts-s2", 32, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-s2", 34, {"S0": ["=a"]}, CONFLICT),
    Deviation("tx-conflicts-s2", 41, {"S0": ["=v|u|later|"]}, CONFLICT),
    Deviation("tx-conflicts-s2", 79, {"S0": ["=OK|"], "S1": ["!/g/107/c6/d|w6|", "!/g/107/c6/mark|w6|"]}, CONFLICT),
    Deviation("tx-conflicts-s2", 80, {"S0": ["=e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-s2", 81, {"S0": ["E:ENOENT"]}, CONFLICT),
    Deviation("tx-conflicts-s2", 82, {"S0": ["E:ENOENT"]}, CONFLICT),
    Deviation("tx-conflicts-s2", 91, {"S0": ["=OK|"], "S1": ["!/g/107/c7/mark|w7|"]}, CONFLICT),
    Deviation("tx-conflicts-s2", 92, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-g0", 43, {"G1": ["=OK|"], "S1": ["!/g/108/c3/d/v|w3|", "!/g/108/c3/mark|w3|"]}, CONFLICT),
    Deviation("tx-conflicts-g0", 44, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-g0", 55, {"G1": ["=OK|"], "S1": ["!/g/108/c4/mark|w4|"]}, CONFLICT),
    Deviation("tx-conflicts-g0", 56, {"S0": ["=d|e|n1|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-g0", 79, {"G1": ["=OK|"], "S1": ["!/g/108/c6/d/v|w6|", "!/g/108/c6/mark|w6|"]}, CONFLICT),
    Deviation("tx-conflicts-g0", 80, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-g0", 81, {"S0": ["=u|"]}, CONFLICT),
    Deviation("tx-conflicts-g0", 82, {"S0": ["E:ENOENT"]}, CONFLICT),
    Deviation("tx-conflicts-g0", 91, {"G1": ["=OK|"], "S1": ["!/g/108/c7/mark|w7|"]}, CONFLICT),
    Deviation("tx-conflicts-g0", 92, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-g0", 154, {"G1": ["=OK|"], "S1": ["!/g/108/c12/mark|w12|"]}, CONFLICT),
    Deviation("tx-conflicts-g0", 155, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-g1", 43, {"G1": ["=OK|"], "S1": ["!/g/109/c3/mark|w3|"]}, CONFLICT),
    Deviation("tx-conflicts-g1", 44, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-g1", 65, {"G1": ["=u|v|"]}, CONFLICT),
    Deviation("tx-conflicts-g1", 79, {"G1": ["=OK|"], "S1": ["!/g/109/c6/d|w6|", "!/g/109/c6/mark|w6|"]}, CONFLICT),
    Deviation("tx-conflicts-g1", 80, {"S0": ["=e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-g1", 81, {"S0": ["E:ENOENT"]}, CONFLICT),
    Deviation("tx-conflicts-g1", 82, {"S0": ["E:ENOENT"]}, CONFLICT),
    Deviation(
        "tx-conflicts-g1", 91, {"G1": ["=OK|"], "S1": ["!/g/109/c7/d/later|w7|", "!/g/109/c7/mark|w7|"]}, CONFLICT
    ),
    Deviation("tx-conflicts-g1", 92, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-g1", 93, {"S0": ["=v|u|"]}, CONFLICT),
    Deviation("tx-conflicts-g1", 158, {"G1": ["=OK|"], "S1": ["!/g/109/c12/mark|w12|"]}, CONFLICT),
    Deviation("tx-conflicts-g1", 159, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation(
        "tx-conflicts-g1", 170, {"G1": ["=OK|"], "S1": ["!/g/109/c13/d/nn|w13|", "!/g/109/c13/mark|w13|"]}, CONFLICT
    ),
    Deviation("tx-conflicts-g1", 171, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-g1", 172, {"S0": ["=v|u|nn|"]}, CONFLICT),
    Deviation("tx-conflicts-g2", 31, {"G1": ["=OK|"], "S1": ["!/g/110/c2/d/v|w2|", "!/g/110/c2/mark|w2|"]}, CONFLICT),
    Deviation("tx-conflicts-g2", 32, {"S0": ["=d|e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-g2", 34, {"S0": ["=a"]}, CONFLICT),
    Deviation("tx-conflicts-g2", 79, {"G1": ["=OK|"], "S1": ["!/g/110/c6/d|w6|", "!/g/110/c6/mark|w6|"]}, CONFLICT),
    Deviation("tx-conflicts-g2", 80, {"S0": ["=e|mark|"]}, CONFLICT),
    Deviation("tx-conflicts-g2", 81, {"S0": ["E:ENOENT"]}, CONFLICT),
    Deviation("tx-conflicts-g2", 82, {"S0": ["E:ENOENT"]}, CONFLICT),
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
