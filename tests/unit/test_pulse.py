"""When a Logic that makes no turns counts as hanging."""

from xenstore_state.pulse import LOOK_MAX, Pulse


def test_each_turn_begins_anew() -> None:
    pulse = Pulse()
    pulse.begin(100.0)
    assert [pulse.still(beat, now) for beat, now in ((7, 101.0), (7, 101.5), (7, 102.0), (8, 102.5))] == [
        0,
        0.5,
        1.0,
        0,
    ]


def test_another_logic_is_not_blamed_for_the_last_one() -> None:
    pulse = Pulse()
    pulse.begin(100.0)
    pulse.still(7, 100.0)
    assert pulse.still(7, 101.0) == 1.0
    pulse.begin(150.0)
    assert pulse.still(7, 151.0) == 1.0


def test_time_in_which_the_watcher_itself_stood_still_does_not_count() -> None:
    """A host short of processor time: State is back after a minute, and Logic had no more of it than State."""
    pulse = Pulse()
    pulse.begin(100.0)
    pulse.still(7, 100.0)
    assert pulse.still(7, 160.0) == LOOK_MAX
    assert pulse.still(7, 161.0) == LOOK_MAX + 1
