"""The regression guard that is not timed: what the fixed workload costs in bytecodes, calls and instructions.

The comparison with the stored figures is skipped, with the reason, where there are none for this Python version and build; that
a slower function is noticed is shown everywhere.
"""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from bench.counting import bytecodes, instructions, stored
from bench.counting.__main__ import NOT_ALL
from bench.counting.stored import Comparison, NothingStored, compare
from bench.interpreter import COMPILED, build_of, not_compiled
from tests.oracle.build import ROOT
from xenstore_state.watches import Watch, WatchTrie

SLOWED = """
import sys
from xenstore_state.watches import WatchTrie
quick = WatchTrie.matching
WatchTrie.matching = lambda self, parts: (sorted(range(400, 0, -1)), quick(self, parts))[1]
from bench.counting import instructions
instructions.run(sys.argv[-1])
"""
"""Makes a function slower by work that is done in C: no more bytecodes to speak of, many more instructions."""


def _compared(kind: str, counts: stored.Counts) -> Comparison:
    try:
        was = stored.stored(kind, build_of(sys.executable))
    except NothingStored as error:
        pytest.skip(str(error))
    comparison = compare(was, counts)
    if comparison.better:
        text = "; ".join(map(str, comparison.better))
        warnings.warn(f"{kind} have become fewer, `{stored.UPDATE}` stores them: {text}", stacklevel=2)
    return comparison


@pytest.fixture(scope="module")
def counted() -> dict[str, bytecodes.Counts]:
    """Bytecodes and calls of this build."""
    return bytecodes.count_all()


@pytest.fixture(scope="module")
def executed() -> dict[str, float]:
    """Instructions of this build."""
    reason = instructions.missing()
    if reason is not None:
        pytest.skip(reason)
    return instructions.count_all()


@pytest.mark.parametrize("kind", ["bytecodes", "calls"])
def test_no_section_costs_more_than_is_stored(kind: str, counted: dict[str, bytecodes.Counts]) -> None:
    worse = _compared(kind, counted[kind]).worse
    assert not worse, f"{kind}: {'; '.join(map(str, worse))}. If that is right, `{stored.UPDATE}` stores it"


def test_no_section_takes_more_instructions_than_are_stored(executed: dict[str, float]) -> None:
    worse = _compared("instructions", executed).worse
    assert not worse, f"instructions: {'; '.join(map(str, worse))}. If that is right, `{stored.UPDATE}` stores it"


def test_no_section_costs_the_compiled_build_more_than_is_stored() -> None:
    reason = not_compiled() or instructions.missing()
    if reason is not None:
        pytest.skip(reason)
    command = [str(COMPILED), "-P", str(instructions.LAUNCH), "bench.counting"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == NOT_ALL:
        pytest.skip("; ".join(line for line in done.stdout.splitlines() if line.startswith("no ")))
    more = [line.strip() for line in done.stdout.splitlines() if "MORE:" in line]
    store = f"`{COMPILED.relative_to(ROOT)} -P bench/launch.py bench.counting --update` stores it"
    assert done.returncode == 0, f"compiled: {'; '.join(more) or done.stderr}. If that is right, {store}"


def test_a_slower_function_is_noticed_by_its_bytecodes(
    counted: dict[str, bytecodes.Counts], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = WatchTrie.matching

    def slow(self: WatchTrie, parts: tuple[bytes, ...]) -> list[Watch]:
        for _ in range(50):
            pass
        return quick(self, parts)

    monkeypatch.setattr(WatchTrie, "matching", slow)
    worse = compare(counted["bytecodes"], bytecodes.count_all()["bytecodes"]).worse
    assert "write" in {difference.section for difference in worse}
    assert "read" not in {difference.section for difference in worse}


def test_a_slower_function_is_noticed_by_its_instructions(executed: dict[str, float]) -> None:
    slowed = instructions.count_all(program=("-c", SLOWED))
    worse = compare(executed, slowed).worse
    assert "write" in {difference.section for difference in worse}
    assert "read" not in {difference.section for difference in worse}


def test_counting_twice_gives_the_same(counted: dict[str, bytecodes.Counts]) -> None:
    assert compare(counted["bytecodes"], bytecodes.count_all()["bytecodes"], 0.001) == Comparison([], [])


def test_a_section_without_a_stored_figure_is_named() -> None:
    worse = compare({"a": 100, "gone": 1}, {"a": 109, "new": 1}).worse
    assert [difference.section for difference in worse] == ["gone", "new"]


def test_what_has_become_cheaper_is_told_and_no_fault() -> None:
    assert [d.section for d in compare({"a": 100}, {"a": 89}).better] == ["a"]


def test_a_build_without_stored_figures_is_no_success(tmp_path: Path) -> None:
    build = build_of(sys.executable)
    with pytest.raises(NothingStored, match=r"no bytecodes stored for CPython"):
        stored.stored("bytecodes", build, tmp_path / "none.json")
    stored.store("bytecodes", build, {"read": 12.0}, tmp_path / "some.json")
    assert stored.stored("bytecodes", build, tmp_path / "some.json") == {"read": 12.0}
    with pytest.raises(NothingStored):
        stored.stored("bytecodes", build._replace(version="3.99.0"), tmp_path / "some.json")
