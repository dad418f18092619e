"""The benchmark: the rules by which its table judges a row, and that its load client can do what the rows ask for."""

import json
import time
from collections.abc import Iterator

import pytest

from bench.load_client import PROGRAM, Answer, Declined, LoadClient, LoadFailed
from bench.plots import SHEETS, curves_of
from bench.publish import DOCUMENT, filled, lines_from, published
from bench.report import Cell, judged, lines_of
from bench.rows import COMMITS, PEERS, REPORT, Goal, Row, Scenario, Source, Stage
from bench.run import Plan, Results, Scene
from bench.scenarios import ROWS, SCENARIOS, TRIPS, WORKLOAD, selected
from bench.table import as_json, main_table, markdown, tail_table
from tests.oracle.daemons import OurDaemon, short_run_dir

DEADLINE = 60.0
MOMENT = 0.01
"""Seconds a figure takes here, where only that there is one matters."""


def _cell(value: float | None, committed: float | None = None) -> Cell:
    commits = None if committed is None else (committed, 64.0)
    return Cell(value, committed=commits, failure=None if value is not None else "reason")


def _verdict(goal: Goal, ours: float | None, **peers: float | None) -> str:
    cells = {name: _cell(value) for name, value in peers.items()} | {"ours": _cell(ours)}
    return judged(Row("row", "", "", goal), cells).verdict


RATIOS = Goal(1.2, 1.5)
MEMORY_GOAL = Goal(at_most=110)


@pytest.mark.parametrize(
    ("goal", "ours", "c", "ocaml", "verdict"),
    [
        (PEERS, 12, 10, 14, "ok"),
        (PEERS, 15, 10, 14, "SLOWER than both peers"),
        (RATIOS, 10, 12, 15, "ok"),
        (RATIOS, 10, 11, 15, "SHORT of 1.2 x C"),
        (RATIOS, 10, 12, 14, "SHORT of 1.5 x oxenstored"),
        (RATIOS, 10, 1, 1, "SHORT of 1.2 x C; SHORT of 1.5 x oxenstored"),
        (RATIOS, 10, 11.96, 15, "ok"),
        (MEMORY_GOAL, 110, 1, 1, "ok"),
        (MEMORY_GOAL, 111, 1, 1, "MORE than 110 us"),
        (REPORT, 1000, 1, 1, ""),
        (PEERS, 12, 10, None, "no verdict without oxenstored"),
        (PEERS, 12, None, 14, "ok"),
        (RATIOS, 12, 10, None, "SHORT of 1.2 x C"),
        (RATIOS, 1, None, 100, "no verdict without C xenstored"),
        (PEERS, None, 10, 14, "FAILED"),
        (PEERS, 12, None, None, "no verdict without C xenstored and oxenstored"),
    ],
)
def test_a_row_is_held_to_its_goal(
    goal: Goal, ours: float | None, c: float | None, ocaml: float | None, verdict: str
) -> None:
    assert _verdict(goal, ours, c=c, ocaml=ocaml) == verdict


def test_fewer_commits_than_both_peers_fall_short() -> None:
    cells = {"c": _cell(10, 2), "ocaml": _cell(10, 64), "ours": _cell(10, 1)}
    assert judged(Row("row", "", measure=COMMITS), cells).verdict == "FEWER commits than both peers"


def test_a_cell_shows_the_median_and_marks_unsteady_rounds() -> None:
    figures: list[Answer] = [{"us": value, "cpu_us": 5.0} for value in (10.0, 12.0, 30.0)]
    assert Cell.of(ROWS[0], figures, None).text() == "12.0 (5.00) ~"


def test_a_failure_leaves_no_figure_even_after_some_rounds() -> None:
    assert Cell.of(ROWS[0], [{"us": 10.0, "cpu_us": 5.0}], "gone").text() == "failed"


def test_what_was_declined_is_shown_with_its_reason() -> None:
    results = Results()
    results.declined[ROWS[0].name, "c"] = "would take at least 300 s"
    results.figures[ROWS[0].name, "ours"].append({"us": 10.0, "cpu_us": 5.0, "p99_us": 20.0, "p999_us": 30.0})
    lines = lines_of([ROWS[0]], ["c", "ours"], results)
    text = markdown(Plan([], ["c", "ours"], 1, 0.1), lines, results, {})
    assert "C xenstored, not measured: `read`: would take at least 300 s" in text
    assert "10.0 / 20.0 / 30.0" in text
    assert json.loads(as_json(Plan([], ["c", "ours"], 1, 0.1), lines, results, {}))["rows"][0]["name"] == "read"


def test_row_names_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_every_curve_has_a_plot_and_every_plot_a_curve() -> None:
    curves = {row.point.curve for row in ROWS if row.point is not None}
    assert curves == {panel.curve for sheet in SHEETS for panel in sheet.panels}


def test_a_figure_that_is_missing_leaves_a_gap_in_its_curve() -> None:
    point = {"curve": "new", "x": 10.0}
    cells = {"c": {"value": None}, "ours": {"value": 3.0}}
    assert curves_of({"rows": [{"point": point, "medians": cells}]}) == {"new": {"ours": [(10.0, 3.0)]}}


def test_selecting_rows_keeps_their_set_up_only() -> None:
    scenarios = selected(frozenset({"watches-50k"}))
    assert [[stage.set_up for stage in scenario.stages] for scenario in scenarios] == [["watches 50000 1000000 60"]]


class _Stub:
    """Stands for a daemon with its load client in a test of the order of things."""

    def __init__(
        self, name: str, breaks_at: int = -1, failing_set_ups: int = 0, steps: list[tuple[str, str, bool]] | None = None
    ) -> None:
        self.name = name
        self.steps = [] if steps is None else steps
        self.out: str | None = None
        self.figures = 0
        self.starts = 0
        self._breaks_at = breaks_at
        self._failing_set_ups = failing_set_ups

    def set_up(self, command: str) -> Answer:
        self.begin_set_up(command)
        return self.finish_set_up(command)

    def begin_set_up(self, command: str, swapped: bool = False) -> None:
        self.steps.append(("begins", self.name, swapped))

    def finish_set_up(self, command: str) -> Answer:
        self.steps.append(("ends", self.name, False))
        self._failing_set_ups -= 1
        if self._failing_set_ups >= 0:
            raise LoadFailed("not set up on purpose")
        return {"seconds": 0.0, "us": 1.0}

    def figure(self, row: Row, seconds: float) -> Answer:
        self.figures += 1
        if self.figures == self._breaks_at:
            raise LoadFailed("broken on purpose")
        return {"us": float(self.figures)}

    def explain(self, error: Exception) -> str:
        return str(error)

    def start_again(self) -> None:
        self.starts += 1


@pytest.mark.parametrize(("failing", "figures"), [(0, 1), (1, 1), (2, 0)])
def test_a_set_up_that_fails_is_tried_once_more(failing: int, figures: int) -> None:
    stage = Stage("idle 2", (Row("first", "", "a"),))
    results, stub = Results(), _Stub("ours", failing_set_ups=failing)
    plan = Plan([], ["ours"], 1, 0.0)
    Scene(Scenario("stubs", (stage,)), plan, results, time.monotonic()).play_stage(stage, [stub])
    assert len(results.figures["first", "ours"]) == figures
    assert (("first", "ours") in results.failures) is (figures == 0)


def test_daemons_are_set_up_at_once_on_both_cores_unless_that_is_measured() -> None:
    steps: list[tuple[str, str, bool]] = []
    stubs = [_Stub(name, steps=steps) for name in ("c", "ours")]
    measured = Row("first-register", "", source=Source.SET_UP)
    together, apart = Stage("idle 2", (Row("first", "", "a"),)), Stage("watches 2", (measured,))
    results = Results()
    scene = Scene(Scenario("stubs", (together, apart)), Plan([], ["c", "ours"], 1, 0.0), results, time.monotonic())
    scene.play_stage(together, stubs)
    assert steps == [("begins", "c", True), ("begins", "ours", False), ("ends", "c", False), ("ends", "ours", False)]
    steps.clear()
    scene.play_stage(apart, stubs)
    assert steps == [("begins", "c", False), ("ends", "c", False), ("begins", "ours", False), ("ends", "ours", False)]
    assert [len(results.figures[measured.name, stub.name]) for stub in stubs] == [1, 1]


def test_when_time_runs_out_there_is_one_round() -> None:
    stage = Stage("", (Row("first", "", "a"),))
    results, stub = Results(), _Stub("ours")
    Scene(Scenario("stubs", (stage,)), Plan([], ["ours"], 3, 0.0, limit=-1), results, time.monotonic()).play_stage(
        stage, [stub]
    )
    assert stub.figures == 1


def test_a_failure_costs_that_daemon_the_row_and_nobody_else_anything() -> None:
    rows = [Row("first", "", "a"), Row("second", "", "b")]
    scenario = Scenario("stubs", (Stage("", tuple(rows)),))
    results = Results()
    stubs = [_Stub("c", breaks_at=2), _Stub("ours")]
    scene = Scene(scenario, Plan([scenario], ["c", "ours"], 3, 0.0), results, time.monotonic())
    scene.play_stage(scenario.stages[0], stubs)
    assert results.failures == {("first", "c"): "broken on purpose"}
    assert [len(results.figures[row.name, "ours"]) for row in rows] == [3, 3]
    assert len(results.figures["second", "c"]) == 3
    assert stubs[0].starts == 1


@pytest.fixture(scope="module")
def load() -> Iterator[LoadClient]:
    """A load client of this project's daemon, on a simulated Xen."""
    reason = PROGRAM.missing() if PROGRAM.stale() else None
    if reason is not None:
        pytest.skip(reason)
    with short_run_dir() as run_dir, OurDaemon(run_dir) as daemon, LoadClient(daemon.socket, daemon.xen_dir) as client:
        client.command("pids " + " ".join(map(str, daemon.counted_pids())), DEADLINE)
        yield client


COMMANDS = [
    *(("idle 2", f"socket {kind} {{seconds}}", None) for kind in (*TRIPS, "deep-read", "deep-write")),
    *(("guests 1", f"ring {kind} {{seconds}}", None) for kind in TRIPS),
    *(("guests 1", f"ring-pipeline 16 {kind} {{seconds}}", None) for kind in ("read", "write")),
    ("guests 1", "ring-transaction 10 {seconds}", None),
    ("guests 3", "rings read {seconds}", None),
    ("guests 3", "rings write {seconds}", None),
    ("guests 3", "ring-fanout {seconds}", None),
    ("guests 3", "rings read {seconds}", None),
    ("idle 2", "pipeline 16 read {seconds}", None),
    ("idle 2", "session {seconds}", None),
    ("idle 2", "parallel 3 {seconds}", None),
    ("watches 2 1 60", "fanout 3 {seconds}", None),
    ("watches 2 1 60", "watched-removal 3 {seconds}", None),
    ("fill 2 60", "transaction 0 {seconds}", None),
    ("fill 2 60", "transaction 2 {seconds}", None),
    ("fill 2 60", "new 3", 3),
    ("fill 2 60", "transacted-children 3 60", 3),
    ("fill 2 60", "devices 3 present", 3),
    ("fill 2 60", "storm {seconds}", None),
    ("domains 2", "introduce 3", 3),
    ("domains 2", "destroy 3", 3),
]
TESTED_ELSEWHERE = {"children", "hosts", "day"}


def test_every_command_of_a_row_is_tried_below() -> None:
    stages = [stage for scenario in SCENARIOS for stage in scenario.stages]
    used = {row.command.split()[0] for stage in stages for row in stage.rows if row.command}
    used |= {stage.set_up.split()[0] for stage in stages if stage.set_up}
    assert used - TESTED_ELSEWHERE == {text.split()[0] for set_up, command, _ in COMMANDS for text in (set_up, command)}


@pytest.mark.parametrize(("set_up", "command", "count"), COMMANDS)
def test_the_load_client_gives_a_figure(load: LoadClient, set_up: str, command: str, count: int | None) -> None:
    assert float(load.command(set_up, DEADLINE)["seconds"]) >= 0
    figure = load.command(command.format(seconds=MOMENT), DEADLINE)
    assert float(figure["us"]) > 0
    assert float(figure["cpu_us"]) > 0
    assert float(figure["count"]) == count if count is not None else float(figure["count"]) > 0


def test_children_give_a_figure_for_each_of_their_rows(load: LoadClient) -> None:
    answer = load.command("children 1200", DEADLINE)  # more names than one message has room for
    rows = [row for row in ROWS if row.command == "children 1000"]
    assert len(rows) == 4
    assert all(float(answer[row.measure.quantity]) > 0 for row in rows)


def test_a_real_hosts_day_is_answered_as_it_was_recorded() -> None:
    """All 2,000 requests of it, with others' rings and sockets in place."""
    reason = PROGRAM.missing() if PROGRAM.stale() else None
    if reason is not None:
        pytest.skip(reason)
    with short_run_dir() as run_dir, OurDaemon(run_dir) as daemon, LoadClient(daemon.socket, daemon.xen_dir) as client:
        client.command("pids " + " ".join(map(str, daemon.counted_pids())), DEADLINE)
        client.command(f"hosts 2 60 {WORKLOAD}", DEADLINE)
        answer = client.command("day 0", DEADLINE)
    assert answer["otherwise"] == 0, answer["first_otherwise"]
    assert float(answer["requests"]) > 1900


def test_what_would_take_too_long_is_declined_and_the_client_goes_on(load: LoadClient) -> None:
    with pytest.raises(Declined, match="would take at least"):
        load.command("transacted-children 10000000 0.1", DEADLINE)
    assert float(load.command("socket read 0.01", DEADLINE)["us"]) > 0


def test_the_load_client_says_what_went_wrong(load: LoadClient) -> None:
    with pytest.raises(LoadFailed, match="unknown command"):
        load.command("nonsense", DEADLINE)


def test_only_what_stands_between_markers_is_replaced() -> None:
    text = "before\n<!-- a -->\nold\n<!-- /a -->\nafter\n"
    assert filled(text, {"a": "new"}) == "before\n<!-- a -->\n\nnew\n\n<!-- /a -->\nafter\n"
    with pytest.raises(ValueError, match="0 pairs"):
        filled(text, {"b": "new"})


def test_what_a_run_has_stored_is_read_back_as_it_was() -> None:
    results = Results()
    results.failures[ROWS[1].name, "c"] = "gone"
    for name in ("c", "ours"):
        results.figures[ROWS[0].name, name].append({"us": 10.0, "cpu_us": 5.0, "p99_us": 20.0, "p999_us": 30.0})
    lines = lines_of(ROWS[:2], ["c", "ours"], results)
    stored = json.loads(as_json(Plan([], ["c", "ours"], 1, 0.1), lines, results, {}))
    again = lines_from(stored)
    assert main_table(again, ["c", "ours"]) == main_table(lines, ["c", "ours"])
    assert tail_table(again, ["c", "ours"]) == tail_table(lines, ["c", "ours"])


def test_the_document_shows_the_results_that_are_kept() -> None:
    text = DOCUMENT.read_text()
    assert published(text) == text, "`python -m bench.publish` brings it up to date"
