"""The micro-benchmarks: that every part can be measured again and again, and that the budget adds up."""

import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from bench.micro import budget, courses
from bench.micro.parts import CALL, PARTS, STEP, Part, ready_stand
from bench.stand import RECEIVE

TRIP = budget.Trip(whole=20.0, client=6.0, logic=12.0, state=9.0)
MADE = courses.Measured({"readiness": 1.0, courses.HANDLER: 2.0, "send": 3.0}, {"the path": 0.5, "lookup": 0.25}, 7.0)
PARTS_MADE = budget.Parts({budget.DIGEST: 500.0}, {}, 1)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_can_be_repeated(part: Part) -> None:
    timed = part.timed
    assert timed(2) > 0
    assert timed(200) > 0


@pytest.mark.parametrize(
    "stages", [budget.read_stages(MADE, TRIP), budget.write_stages(MADE, PARTS_MADE, TRIP)], ids=["read", "write"]
)
def test_the_stages_add_up_to_the_round_trip(stages: list[budget.Stage]) -> None:
    assert sum(stage.us for stage in stages if not stage.inside) == pytest.approx(TRIP.whole)
    handler = next(stage for stage in stages if stage.title == courses.HANDLER)
    assert sum(stage.us for stage in stages if stage.inside) == pytest.approx(handler.us)
    assert [stage.us for stage in stages if stage.title == "the loop itself"] == pytest.approx([1.0])


def test_what_state_does_adds_up_to_its_cpu_time() -> None:
    stages = budget.state_stages(MADE, TRIP)
    assert sum(stage.us for stage in stages) == pytest.approx(TRIP.state)


@pytest.mark.parametrize("name", ["READ", "WRITE"])
def test_the_stages_of_a_course_do_what_a_turn_does(name: str) -> None:
    with closing(ready_stand()) as stand:
        course = courses.COURSES[name](stand)
        course.before()
        for stage in course.stages.values():
            stage()
        by_stages = stand.client.recv(RECEIVE)
        course.before()
        course.whole()
        assert by_stages == stand.client.recv(RECEIVE)
        stand.drain()  # State finds no fault with either
        assert stand.consumer.empty
        assert stand.state.tree.generation == stand.core.store.tree.generation


def test_every_course_can_be_measured() -> None:
    for made in courses.measure(min(os.sched_getaffinity(0)), turns=40).values():
        assert made.whole > 0
        assert all(us > 0 for us in made.stages.values())


def test_what_the_harness_costs_is_subtracted(tmp_path: Path) -> None:
    values = {CALL: 1e-7, STEP: 3e-7, "lookup": 11e-7, "record: publish": 23e-7}
    benchmarks = [{"metadata": {"name": name}, "runs": [{"values": [us]}]} for name, us in values.items()]
    path = tmp_path / "micro.json"
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    us = budget.read(path).us
    assert us["lookup"] == pytest.approx(1.0)
    assert us["record: publish"] == pytest.approx(2.0)
