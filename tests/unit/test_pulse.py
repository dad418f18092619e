"""When a Logic that makes no turns counts as hanging."""

import pytest

from xenstore_state.pulse import LATE, Pulse


@pytest.fixture
def pulse() -> Pulse:
    """Of a Logic that has made its seventh turn at 100."""
    made = Pulse()
    made.begin(99.0)
    made.still(7, 100.0, 1.0)
    return made


def test_time_without_a_turn_counts_until_there_is_one(pulse: Pulse) -> None:
    assert [pulse.still(beat, now, 1.0) for beat, now in ((7, 101.0), (7, 101.5), (8, 102.5), (8, 103.0))] == [
        1.0,
        1.5,
        0.0,
        0.5,
    ]


def test_another_logic_is_not_blamed_for_the_last_one(pulse: Pulse) -> None:
    assert pulse.still(7, 101.0, 1.0) == 1.0
    pulse.begin(150.0)
    assert pulse.still(7, 151.0, 1.0) == 1.0


@pytest.mark.parametrize("meant", [0.001, 1.0])
def test_time_in_which_the_watcher_itself_stood_still_does_not_count(pulse: Pulse, meant: float) -> None:
    """A host short of processor time: State is back after a minute, and Logic had no more of it than State."""
    assert pulse.still(7, 160.0, meant) == pytest.approx(meant + LATE)
    assert pulse.still(7, 160.005, meant) == pytest.approx(meant + LATE + 0.005)
