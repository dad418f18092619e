"""When a Logic that makes no turns counts as hanging."""

from typing import Final

import pytest

from xenstore_state.pulse import LATE, Pulse

SEVENTH: Final = (7, 0)
"""Its turn, and the request at hand."""


@pytest.fixture
def pulse() -> Pulse:
    """Of a Logic that has made its seventh turn at 100."""
    made = Pulse()
    made.begin(99.0)
    made.still(SEVENTH, 100.0, 1.0)
    return made


def test_time_without_a_turn_counts_until_there_is_one(pulse: Pulse) -> None:
    signs = [(SEVENTH, 101.0), (SEVENTH, 101.5), ((8, 0), 102.5), ((8, 0), 103.0), ((8, 1), 104.0)]
    assert [pulse.still(sign, now, 1.0) for sign, now in signs] == [1.0, 1.5, 0.0, 0.5, 0.0]


def test_another_logic_is_not_blamed_for_the_last_one(pulse: Pulse) -> None:
    assert pulse.still(SEVENTH, 101.0, 1.0) == 1.0
    pulse.begin(150.0)
    assert pulse.still(SEVENTH, 151.0, 1.0) == 1.0


@pytest.mark.parametrize("meant", [0.001, 1.0])
def test_time_in_which_the_watcher_itself_stood_still_does_not_count(pulse: Pulse, meant: float) -> None:
    """A host short of processor time: State is back after a minute, and Logic had no more of it than State."""
    assert pulse.still(SEVENTH, 160.0, meant) == pytest.approx(meant + LATE)
    assert pulse.still(SEVENTH, 160.005, meant) == pytest.approx(meant + LATE + 0.005)
