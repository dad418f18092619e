"""The benchmark: the rules by which its table judges a row, and that its load client can do what the rows ask for."""

from collections.abc import Iterator

import pytest

from bench.load_client import PROGRAM, Answer, LoadClient, LoadFailed
from bench.report import Cell, judged, legend
from bench.rows import ROWS, SCENARIOS, Goal, Measure, Row, selected
from tests.oracle.daemons import OurDaemon, short_run_dir

DEADLINE = 60.0
MOMENT = 0.01
"""Seconds a figure takes here, where only that there is one matters."""


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


def test_the_legend_names_the_rows_that_are_held_to_more() -> None:
    row = Row("ring-read", "", "", Goal.ROUND_TRIP)
    text = legend(
        [row, row._replace(name="domains-1000-write", goal=Goal.TENFOLD), row._replace(name="a", goal=Goal.PEERS)]
    )
    assert "`ring-read` to being no slower than C" in text
    assert "`domains-1000-write` to ten times C's speed" in text
    assert "`a`" not in text


@pytest.fixture(scope="module")
def load() -> Iterator[LoadClient]:
    """A load client of this project's daemon, on a simulated Xen."""
    reason = PROGRAM.missing() if PROGRAM.stale() else None
    if reason is not None:
        pytest.skip(reason)
    with short_run_dir() as run_dir, OurDaemon(run_dir) as daemon, LoadClient(daemon.socket, daemon.xen_dir) as client:
        client.command("pids " + " ".join(map(str, daemon.pids())), DEADLINE)
        yield client


COMMANDS = [
    ("idle 2", "read {seconds}", None),
    ("idle 2", "write {seconds}", None),
    ("idle 2", "session {seconds}", None),
    ("idle 2", "parallel 3 {seconds}", None),
    ("watches 2 1", "fanout 3 {seconds}", None),
    ("fill 2", "transaction 2 {seconds}", None),
    ("fill 2", "children 3", 3),
    ("fill 2", "devices 3 present", 3),
    ("guests 1", "ring read {seconds}", None),
    ("guests 1", "ring write {seconds}", None),
    ("guests 3", "rings read {seconds}", None),
    ("guests 3", "rings write {seconds}", None),
    ("domains 2", "introduce 3", 3),
    ("domains 2", "destroy 3", 3),
]


def test_every_command_of_a_row_is_tried_below() -> None:
    stages = [stage for scenario in SCENARIOS for stage in scenario.stages]
    used = {row.command.split()[0] for stage in stages for row in stage.rows if row.command}
    used |= {stage.set_up.split()[0] for stage in stages if stage.set_up}
    assert used <= {text.split()[0] for set_up, command, _ in COMMANDS for text in (set_up, command)}


@pytest.mark.parametrize(("set_up", "command", "count"), COMMANDS)
def test_the_load_client_gives_a_figure(load: LoadClient, set_up: str, command: str, count: int | None) -> None:
    assert float(load.command(set_up, DEADLINE)["seconds"]) >= 0
    figure = load.command(command.format(seconds=MOMENT), DEADLINE)
    assert float(figure["us"]) > 0
    assert float(figure["cpu_us"]) > 0
    assert float(figure["count"]) == count if count is not None else float(figure["count"]) > 0


def test_the_load_client_says_what_went_wrong(load: LoadClient) -> None:
    with pytest.raises(LoadFailed, match="unknown command"):
        load.command("nonsense", DEADLINE)
