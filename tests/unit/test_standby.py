"""Who stands by is, when its turn comes, what State is: whatever happened since the fork, and not a byte more."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recovery_box.ledger import Ledger, LedgerError, Reader
from tests.model.support import examples
from tests.unit.standing import PATIENCE, Fork, same
from xenstore_state import effects, standby
from xenstore_state.records import BadRecord
from xenstore_state.standby import FOLLOW_BYTES, LAG_MAX, NEWCOMERS_MAX, RENEW_BYTES, TURN_MAX, Reserve, Turn


@pytest.fixture
def fork(tmp_path: Path) -> Iterator[Fork]:
    made = Fork(tmp_path)
    yield made
    made.close()


def test_nothing_has_happened(fork: Fork) -> None:
    fork.state.write("before")
    fork.open()
    fork.fork()
    same(fork.turn(), fork)


def test_what_has_happened_since_is_done_again(fork: Fork) -> None:
    fork.state.write("before")
    stays, ends = fork.open(), fork.open()
    fork.fork()
    fork.state.write("after")
    fork.state.do(effects.WATCH, b"/w", b"token", -1, 0)
    fork.end(ends)
    newcomer = fork.open()
    said = fork.turn(
        begun=[stays.id, newcomer.id], poison=[(stays.id, 7)], penalties={newcomer.id: 1.5}, history="so far"
    )
    same(said, fork)
    assert said["begun"] == [stays.id, newcomer.id]
    assert said["rest"] == (fork.state.sequence, frozenset({(stays.id, 7)}), {newcomer.id: 1.5}, "so far", None)


def test_the_last_record_is_the_one_that_state_applied_last(fork: Fork) -> None:
    """Whatever is in it, which no message may be able to hold; and none that State has rejected."""
    reader = fork.open()
    fork.state.do(effects.NOTHING, outputs=((reader.id, 0, b"before", False, 0),))
    fork.fork()
    with pytest.raises(BadRecord):
        fork.state.write("/rejected")
    long = (reader.id, 6, bytes(TURN_MAX), True, 0)
    fork.state.do(effects.NOTHING, outputs=(long,))
    same(fork.turn(pending={reader.id: 6}), fork)


def test_without_any_since_the_fork_it_is_the_one_from_before(fork: Fork) -> None:
    reader = fork.open()
    fork.state.do(effects.NOTHING, outputs=((reader.id, 0, b"before", False, 0),))
    fork.fork()
    fork.open()
    same(fork.turn(), fork)


def test_output_waits_from_where_state_says_that_it_does(fork: Fork) -> None:
    """What moves on after the last record about it stands in no ledger."""
    moves, waits = fork.open(), fork.open()
    fork.fork()
    for connection, name in ((moves, "a"), (waits, "b")):
        fork.state.do(effects.WRITE, 0, f"/{name}".encode(), b"", outputs=((connection.id, 0, b"event", True, 0),))
    moves.pending.trim(5)
    waits.pending.trim(2)
    said = fork.turn(pending={waits.id: 2})
    same(said, fork)
    assert said["pending"] == {waits.id: list(waits.pending.chunks)}


def test_a_number_means_another_connection_now(fork: Fork) -> None:
    first = fork.open()
    fork.fork()
    fork.end(first)
    second = fork.open()
    assert second.fd == first.fd, "the lowest that is free"
    third = fork.open()
    fork.end(third)
    fork.open()
    same(fork.turn(), fork)


def test_a_poke_that_is_heard_when_the_turn_has_come_leads_no_further(fork: Fork) -> None:
    """What State has written since is for whoever serves to hear of by other ways."""
    fork.open()
    fork.fork()
    os.kill(fork.worker.pid, signal.SIGSTOP)
    fork.open()
    fork.reserve.look_after(resting=True)
    ready = fork.reserve.turn(fork.state.sequence)
    assert ready is not None
    worker, newcomers = ready
    place = fork.state.survival.place
    turn = Turn(newcomers, (place.number, place.end), fork.state.sequence, [], [], {}, {}, "")
    worker.line.entrust(turn.packed() or b"", (fork.epoll.fileno(),))
    known = set(fork.sockets)
    fork.open()  # handed over to it like to any Logic
    os.kill(worker.pid, signal.SIGCONT)
    assert set(fork.said()["sockets"]) == known


def test_it_follows_when_poked_and_what_is_left_is_little(fork: Fork) -> None:
    fork.fork()
    for n in range(LAG_MAX + 1):
        fork.state.write(f"n{n}", bytes(100))
    assert fork.state.survival.place.total > FOLLOW_BYTES
    fork.reserve.look_after(resting=False)
    fork.followed()
    fork.state.write("last")
    same(fork.turn(), fork)


def test_a_rest_is_used_to_catch_up(fork: Fork) -> None:
    fork.fork()
    fork.state.write("little")
    fork.reserve.look_after(resting=True)
    fork.followed()


def test_it_follows_into_the_next_ledgers(fork: Fork) -> None:
    fork.fork()
    for n in range(3):
        fork.state.write(f"n{n}")
        fork.state.checkpoint()
        fork.reserve.look_after(resting=True)
        fork.followed()
    fork.state.write("n3")
    same(fork.turn(), fork)


def test_whoever_lags_too_far_behind_has_no_turn(fork: Fork) -> None:
    fork.fork()
    for n in range(LAG_MAX + 1):
        fork.state.write(f"n{n}")
    assert fork.reserve.turn(fork.state.sequence) is None
    assert fork.worker.pid == 0, "and is gone"


def test_neither_has_whoever_lacks_too_many_connections(fork: Fork) -> None:
    fork.fork()
    for _ in range(NEWCOMERS_MAX + 1):
        fork.open()
    assert fork.reserve.turn(fork.state.sequence) is None


def test_as_many_as_may_be_lacking_are_handed_over_at_once(fork: Fork) -> None:
    fork.fork()
    for _ in range(NEWCOMERS_MAX):
        fork.open()
    same(fork.turn(), fork)


def test_connections_that_have_ended_do_not_count(fork: Fork) -> None:
    fork.fork()
    for _ in range(NEWCOMERS_MAX + 1):
        fork.end(fork.open())
    same(fork.turn(), fork)


def test_neither_has_whoever_is_dead(fork: Fork) -> None:
    fork.fork()
    fork.worker.signal(signal.SIGKILL)
    assert fork.worker.ended(PATIENCE)
    assert fork.reserve.turn(fork.state.sequence) is None
    assert fork.reserve.wanted(1e9), "another one is forked"


def test_its_end_is_noticed(fork: Fork) -> None:
    fork.fork()
    assert not fork.reserve.has_ended(fork.worker.fd + 1)
    fd = fork.worker.fd
    fork.worker.signal(signal.SIGKILL)
    assert [number for number, _ in fork.epoll.poll(PATIENCE)] == [fd]
    assert fork.reserve.has_ended(fd)
    assert not fork.reserve.wanted(0.0), "not at once"
    assert fork.reserve.wanted(1e9)


def test_what_was_not_written_down_cannot_be_followed(fork: Fork) -> None:
    fork.fork()
    fork.state.survival.want_checkpoint()
    assert not fork.reserve.wanted(1e9)
    assert fork.reserve.turn(fork.state.sequence) is None


def test_whoever_has_changed_much_is_replaced_when_there_is_time(fork: Fork) -> None:
    fork.fork()
    fork.write_down(RENEW_BYTES)
    fork.reserve.look_after(resting=False)
    assert fork.worker.pid
    fork.reserve.look_after(resting=True)
    assert not fork.worker.pid
    assert fork.reserve.wanted(1e9)


def test_whoever_has_changed_much_does_not_do_when_memory_is_wanted(fork: Fork) -> None:
    fork.fork()
    fork.write_down(RENEW_BYTES)
    fork.reserve.look_after(resting=False)
    fork.followed()
    assert fork.reserve.turn(fork.state.sequence, shared=True) is None


def test_whoever_has_changed_very_much_is_replaced_at_any_time(fork: Fork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "RENEW_ANYHOW", 1 << 16)
    fork.fork()
    fork.write_down(1 << 16)
    fork.reserve.look_after(resting=False)
    assert not fork.worker.pid


def test_a_damage_is_not_served_from(fork: Fork) -> None:
    fork.fork()
    fork.state.write("a")
    ledger = fork.state.survival._ledger
    ledger._memory[ledger.end - 8] ^= 0xFF
    assert "damaged" in fork.turn()["fails"]


def test_a_connection_that_was_not_handed_over_is_not_served_without(fork: Fork) -> None:
    fork.fork()
    fork.open()
    fork.reserve._newcomers.clear()
    assert "missing" in fork.turn()["fails"]


def test_a_turn_too_long_for_a_message_has_everything_looked_at() -> None:
    long = Turn(0, (1, 64), 1, list(range(10**5, 2 * 10**5)), [], {}, {}, "text")
    assert long.packed() == long._replace(begun=None, history="").packed()
    short = long._replace(begun=[1])
    assert short.packed() != long.packed()


def test_a_turn_that_is_too_long_in_any_case_is_none() -> None:
    penalties = dict.fromkeys(range(TURN_MAX), 1.5)
    assert Turn(0, (1, 64), 1, [], [], penalties, {}, "").packed() is None


def test_there_is_nobody_without_anything_written_down(fork: Fork) -> None:
    assert not Reserve(fork.box, None, fork.epoll).wanted(1e9)


@examples(50)
@given(st.lists(st.lists(st.binary(max_size=300), max_size=20), max_size=6), st.booleans())
def test_a_reader_finds_what_is_added_and_only_that(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[bytes]], large: bool
) -> None:
    path = str(tmp_path_factory.mktemp("ledger") / "one")
    ledger = Ledger(path)
    ledger.add(b"before")
    reader = Reader(path, ledger.end)
    for number, batch in enumerate(batches):
        end = ledger.end
        for entry in batch:
            ledger.add(entry)
        if large:
            ledger.add(bytes(700_000))
        if number % 2:
            assert list(reader.new(end)) == []
        assert list(reader.new()) == batch + [bytes(700_000)] * large
    with pytest.raises(LedgerError):
        list(reader.new(ledger.end + 8))
    ledger.close()
    reader.close()
