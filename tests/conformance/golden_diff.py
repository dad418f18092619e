"""Where a running daemon differs from the golden corpus: for the golden test, and as a command.

    python -m tests.conformance.golden_diff [--daemon ours|c|ocaml | --socket PATH [--xen DIR]] [SCENARIO ...]

The command plays the scenarios whose names contain one of the given words (all without any) against a daemon that it
starts, or against one that listens at PATH and runs on the simulated Xen DIR, and prints every step that differs: what
was expected, what came, and the entry that `deviations.py` would need.  Deviations count for this project's daemon
(`--socket` is taken for it).  Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.actors import TIMEOUT
from tests.conformance.conftest import KINDS
from tests.conformance.deviations import Deviation, of_scenario
from tests.conformance.player import Player
from tests.conformance.scenarios import Answer, Scenario, Step, load
from tests.conformance.wire import Closed
from tests.conformance.xen import SimulatedXen
from tests.oracle.daemons import short_run_dir

GOLDEN = Path(__file__).parent / "golden"
SILENCES = 3
"""So many unexpected silences end a scenario: each takes long."""


@dataclass(frozen=True)
class Difference:
    """A step at which the daemon answered neither as the reference nor as it should deviate from it."""

    scenario: str
    number: int
    step: Step
    expected: Answer
    got: Answer
    deviation: Deviation | None

    def __str__(self) -> str:
        lines = [f"{self.scenario} [{self.number}] {self.step}"]
        if self.deviation is not None:
            gone = self.step.agrees(self.got, self.step.want or {})
            lines.append(f"    {'no deviation any more' if gone else 'deviation'}: {self.deviation.reason}")
        for actor in sorted(self.expected.keys() | self.got.keys()):
            expected, got = self.expected.get(actor, []), self.got.get(actor, [])
            if expected != got:
                lines += [f"    {actor} expected {expected}", f"    {actor} got      {got}"]
        return "\n".join(lines)

    def entry(self) -> str:
        """What `deviations.py` would need."""
        return f"Deviation({json.dumps(self.scenario)}, {self.number}, {json.dumps(self.got)}, WHY),"


def differences(player: Player, scenario: Scenario, deviations: Mapping[int, Deviation]) -> Iterator[Difference]:
    """Plays the scenario; stops early when the daemon does not answer again and again."""
    silences = 0
    with closing(player.play(scenario, {number: entry.answer for number, entry in deviations.items()})) as steps:
        for number, step, got in steps:
            deviation = deviations.get(number)
            expected = (step.want or {}) if deviation is None else deviation.answer
            if step.agrees(got, expected):
                continue
            yield Difference(scenario.name, number, step, expected, got, deviation)
            silences += any(TIMEOUT in messages for messages in got.values())
            if silences == SILENCES:
                return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--daemon", choices=sorted(KINDS), default="ours")
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--xen", type=Path)
    parser.add_argument("words", nargs="*", metavar="SCENARIO")
    options = parser.parse_args()
    chosen = [s for s in load(GOLDEN) if not options.words or any(word in s.name for word in options.words)]
    with ExitStack() as stack:
        socket, xen = options.socket, options.xen
        if socket is None:
            daemon = stack.enter_context(KINDS[options.daemon](stack.enter_context(short_run_dir())))
            socket, xen = daemon.socket, daemon.xen_dir
        player = Player(socket, None if xen is None else SimulatedXen(xen))
        return report(player, chosen, deviating=options.daemon == "ours")


def report(player: Player, scenarios: list[Scenario], *, deviating: bool) -> int:
    """Plays and prints; the exit status."""
    found = left_out = 0
    for scenario in scenarios:
        if player.xen is None and scenario.needs_xen():
            left_out += 1
            continue
        try:
            for difference in differences(player, scenario, of_scenario(scenario) if deviating else {}):
                found += 1
                print(difference, "    " + difference.entry(), sep="\n", flush=True)
        except (OSError, Closed, AssertionError) as error:
            found += 1
            print(f"{scenario.name}: not played to its end: {type(error).__name__}: {error}", flush=True)
    played = len(scenarios) - left_out
    print(f"{played} scenarios played, {left_out} left out (they need guests), {found} differences", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
