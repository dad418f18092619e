"""The rules by which the benchmark's table judges a row."""

import pytest

from bench.load_client import Answer
from bench.report import Cell, judged
from bench.rows import ROWS, Goal, Measure, Row, selected


def _cell(value: float | None, committed: float | None = None) -> Cell:
    commits = None if committed is None else (committed, 64.0)
    return Cell(value, None, commits, False, None if value is not None else "reason")


def _verdict(goal: Goal, ours: float | None, **peers: float | None) -> str:
    cells = {name: _cell(value) for name, value in peers.items()} | {"ours": _cell(ours)}
    return judged(Row("row", "", "", goal), cells).verdict


@pytest.mark.parametrize(
    ("goal", "ours", "c", "ocaml", "verdict"),
    [
        (Goal.PEERS, 12, 10, 14, "ok"),
        (Goal.PEERS, 15, 10, 14, "SLOWER than both peers"),
        (Goal.ROUND_TRIP, 10, 10, 14, "ok"),
        (Goal.ROUND_TRIP, 12, 10, 14, "SLOWER than C"),
        (Goal.ROUND_TRIP, 15, 10, 14, "SLOWER than both peers"),
        (Goal.TENFOLD, 10, 100, 14, "ok"),
        (Goal.TENFOLD, 11, 100, 14, "SHORT of ten times C"),
        (Goal.NONE, 1000, 1, 1, ""),
        (Goal.PEERS, 12, 10, None, "no verdict without oxenstored"),
        (Goal.PEERS, 12, None, 14, "ok"),
        (Goal.ROUND_TRIP, 12, 10, None, "SLOWER than C"),
        (Goal.TENFOLD, 1, None, 100, "no verdict without C xenstored"),
        (Goal.ROUND_TRIP, 10.04, 10, 14, "ok"),
        (Goal.PEERS, None, 10, 14, "FAILED"),
        (Goal.PEERS, 12, None, None, "no verdict without C xenstored and oxenstored"),
    ],
)
def test_a_row_is_held_to_its_goal_and_to_the_slower_peer(
    goal: Goal, ours: float | None, c: float | None, ocaml: float | None, verdict: str
) -> None:
    assert _verdict(goal, ours, c=c, ocaml=ocaml) == verdict


def test_fewer_commits_than_both_peers_fall_short() -> None:
    row = Row("row", "", "", measure=Measure.COMMITS)
    cells = {"c": _cell(10, 2), "ocaml": _cell(10, 64), "ours": _cell(10, 1)}
    assert judged(row, cells).verdict == "FEWER commits than both peers"


def test_a_cell_shows_the_median_and_marks_unsteady_rounds() -> None:
    figures: list[Answer] = [{"us": value, "cpu_us": 5.0} for value in (10.0, 12.0, 30.0)]
    assert Cell.of(ROWS[0], figures, None).text() == "12.0 (5.0) ~"


def test_a_failure_leaves_no_figure_even_after_some_rounds() -> None:
    assert Cell.of(ROWS[0], [{"us": 10.0, "cpu_us": 5.0}], "gone").text() == "failed"


def test_row_names_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_selecting_rows_keeps_their_set_up_only() -> None:
    scenarios = selected(frozenset({"watches-50k"}))
    assert [[stage.set_up for stage in scenario.stages] for scenario in scenarios] == [["watches 50000 1000000"]]
