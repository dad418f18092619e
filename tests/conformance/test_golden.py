"""The golden corpus: every scenario against what the newest C xenstored answered."""

from __future__ import annotations

import pytest

from tests.conformance.conftest import UnderTest
from tests.conformance.deviations import DEVIATIONS, EVERYWHERE, of_scenario
from tests.conformance.golden_diff import GOLDEN, differences
from tests.conformance.player import Player
from tests.conformance.scenarios import Scenario, Step, load, parse, show
from tests.conformance.xen import SimulatedXen

SCENARIOS = load(GOLDEN)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_daemon_answers_as_the_newest_c_xenstored(daemon: UnderTest, scenario: Scenario) -> None:
    folder = None if daemon.process is None else daemon.process.xen_dir
    if folder is None and scenario.needs_xen():
        pytest.skip("needs guests, and the daemon does not run on a simulated Xen")
    player = Player(daemon.socket, None if folder is None else SimulatedXen(folder))
    found = [str(found) for found in differences(player, scenario, of_scenario(scenario) if daemon.is_ours else {})]
    if found:
        pytest.fail("\n".join(found), pytrace=False)


def test_every_deviation_names_a_recorded_step_and_differs_from_it() -> None:
    recorded = {scenario.name: scenario.recorded() for scenario in SCENARIOS}
    assert len({(d.scenario, d.step) for d in DEVIATIONS}) == len(DEVIATIONS), "a step is listed twice"
    for deviation in DEVIATIONS:
        assert deviation.reason
        step = recorded[deviation.scenario][deviation.step]
        assert not step.agrees(deviation.answer, step.want or {})


def test_every_rewording_shows_somewhere() -> None:
    reasons = {deviation.reason for scenario in SCENARIOS for deviation in of_scenario(scenario).values()}
    assert {rewording.reason for rewording in EVERYWHERE} <= reasons


def test_no_two_scenarios_have_a_name_or_a_root_in_common() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len({s.root for s in SCENARIOS}) == len(SCENARIOS)


def test_the_notation_is_read_as_it_is_written() -> None:
    assert parse(r"/a|\||\\|\{3*x}y") == b"/a\0|\0\\\0xxxy"
    assert show(b"/a\0|\0\\") == r"/a|\||\\"
    assert parse(show(bytes(range(64)))) == bytes(range(64))


def test_answers_agree_loosely_only_where_a_step_says_so() -> None:
    strict, errors, numbers = Step("S0", "X"), Step("S0", "X", loose="any error"), Step("S0", "X", loose="any numbers")
    one, other = {"S0": ["E:ENOENT"]}, {"S0": ["E:EINVAL"]}
    assert strict.agrees(one, one)
    assert not strict.agrees(one, other)
    assert errors.agrees(one, other)
    assert not errors.agrees(one, {"S0": ["=OK|"]})
    assert not errors.agrees(one, {"S1": ["E:ENOENT"]})
    assert numbers.agrees({"S0": ["=nodes :  3 (max 10...282:b4a3"]}, {"S0": ["=nodes : 17 (max 9...281:ffff"]})
    assert not numbers.agrees({"S0": ["=nodes : 3"]}, {"S0": ["=watches : 3"]})
