"""The micro-benchmarks: that every part can be measured again and again, and that the budget adds up."""

import json
from pathlib import Path

import pytest

from bench.micro import budget
from bench.micro.parts import CALL, PARTS, STEP, Part

TRIP = budget.Trip(whole=20.0, client=6.0, logic=12.0, state=9.0)
PARTS_US = {part.name: 0.25 for part in PARTS} | {"turn: READ": 9.0, "turn: WRITE": 13.0}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_can_be_repeated(part: Part) -> None:
    timed = part.timed
    assert timed(2) > 0
    assert timed(200) > 0


@pytest.mark.parametrize("stages", [budget.read_stages(PARTS_US, TRIP), budget.write_stages(PARTS_US, TRIP)])
def test_the_stages_add_up_to_the_round_trip(stages: list[budget.Stage]) -> None:
    assert sum(stage.us for stage in stages if not stage.inside) == pytest.approx(TRIP.whole)


def test_the_parts_of_a_stage_add_up_to_it() -> None:
    stages = budget.read_stages(PARTS_US, TRIP)
    handler = next(stage for stage in stages if stage.title == "handler")
    assert sum(stage.us for stage in stages if stage.inside) == pytest.approx(handler.us)


def test_what_state_does_adds_up_to_its_cpu_time() -> None:
    stages = budget.state_stages(PARTS_US, TRIP)
    assert sum(stage.us for stage in stages) == pytest.approx(TRIP.state)


def test_what_the_harness_costs_is_subtracted(tmp_path: Path) -> None:
    values = {CALL: 1e-7, STEP: 3e-7, "lookup": 11e-7, "lane: send": 23e-7}
    benchmarks = [{"metadata": {"name": name}, "runs": [{"values": [us]}]} for name, us in values.items()]
    path = tmp_path / "micro.json"
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    us = budget.read(path).us
    assert us["lookup"] == pytest.approx(1.0)
    assert us["lane: send"] == pytest.approx(2.0)
