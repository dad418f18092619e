"""What State wrote down before it died comes back whole, or as something that has been, without connections; never half."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from recovery_box.box import W_HEAD, Box
from recovery_box.fdstore import FdStore
from recovery_box.journal import SEGMENT_MAX, Consumer, JournalCorrupt, Producer
from recovery_box.ledger import Ledger
from tests.unit.written import State
from xenstore_state import effects, survival
from xenstore_state.domains import Offer
from xenstore_state.recovered import DAMAGED, recover
from xenstore_state.repetition import Recovered
from xenstore_state.restarts import Restarts
from xenstore_state.store import Store
from xenstore_state.survival import Survival, numbers


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    made = State(tmp_path)
    yield made
    made.close()


def tree(store: Store) -> dict[str, bytes]:
    return {name.decode(): node.value for name, node in (store.tree.root.children or {}).items()}


def back(state: State) -> Recovered:
    found = recover(state.directory)
    assert found is not None
    return found


def newest(state: State, what: str) -> Path:
    return Path(state.directory) / f"{what}.{max(numbers(state.directory, what))}"


def test_everything_comes_back(state: State) -> None:
    state.write("a")
    state.do(effects.WATCH, b"/w", b"token", -1, 0)
    state.accept()
    found = back(state)
    assert found.complete
    assert tree(found.store) == tree(state.store)
    assert [c.id for c in found.store.items.connections] == [1, 2]
    assert found.store.watches.count == 1
    assert (found.sequence, found.next_id) == (2, 3)


def test_a_damaged_newest_checkpoint_costs_nothing(state: State) -> None:
    """The one before it is there, and both ledgers."""
    for n in range(3):
        state.write(f"before{n}")
        state.checkpoint()
    state.write("after")
    assert len(numbers(state.directory, "checkpoint")) == 2
    assert min(numbers(state.directory, "ledger")) == min(numbers(state.directory, "checkpoint"))
    damaged = newest(state, "checkpoint")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    found = back(state)
    assert found.complete
    assert tree(found.store) == tree(state.store)
    assert (Path(state.directory) / DAMAGED).exists()
    assert not damaged.exists(), "it must not be taken for one that can be fallen back on"


def test_a_checkpoint_that_was_never_finished_is_none(state: State) -> None:
    state.write("a")
    (Path(state.directory) / f"checkpoint.{state.survival._number + 1}.new").write_bytes(b"half")
    assert back(state).complete
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    Survival(state.directory, FdStore(ours))._ledger.close()
    assert not list(Path(state.directory).glob("*.new"))
    ours.close()
    theirs.close()


def test_when_nothing_is_usable_there_is_nothing(state: State) -> None:
    newest(state, "checkpoint").write_bytes(b"damaged")
    assert recover(state.directory) is None


def damaged_in(path: Path, marker: bytes) -> None:
    """Flips a bit of the bytes named."""
    data = path.read_bytes()
    assert marker in data
    path.write_bytes(data.replace(marker, bytes([marker[0] ^ 1]) + marker[1:]))


def assert_as_it_was_without_connections(found: Recovered, names: set[str]) -> None:
    assert not found.complete
    assert tree(found.store).keys() - {"tool"} == names
    assert len(found.store.items.connections) == 0
    assert found.store.watches.count == 0
    assert found.unsettled, "rings are introduced anew"
    assert not found.bound
    assert found.last is None


def test_behind_a_damage_in_a_ledger_nothing_is_believed(state: State) -> None:
    state.do(effects.WATCH, b"/w", b"token", -1, 0)
    for n in range(3):
        state.write(f"n{n}", b"value-%d" % n)
    damaged_in(newest(state, "ledger"), b"value-1")
    assert_as_it_was_without_connections(back(state), {"n0"})


def test_neither_is_a_later_ledger(state: State) -> None:
    state.write("first", b"marked")
    first = newest(state, "ledger")
    state.checkpoint()
    state.write("second")
    newest(state, "checkpoint").write_bytes(b"damaged")
    damaged_in(first, b"marked")
    assert_as_it_was_without_connections(back(state), set())


def test_a_ledger_that_is_missing_is_a_damage(state: State) -> None:
    state.write("first")
    first = newest(state, "ledger")
    state.checkpoint()
    state.write("second")
    newest(state, "checkpoint").write_bytes(b"damaged")
    first.unlink()
    assert_as_it_was_without_connections(back(state), set())


def test_a_record_that_cannot_be_repeated_is_a_damage(state: State) -> None:
    state.write("a")
    state.survival.record(2, state.record(effects.RM, 0, b"/not/there"), {})
    state.survival.record(3, state.record(effects.WRITE, 0, b"/b", b""), {})
    assert_as_it_was_without_connections(back(state), {"a"})


@pytest.mark.parametrize("seed", range(60))
def test_whatever_byte_is_damaged_it_is_all_or_what_has_been(tmp_path: Path, seed: int) -> None:
    """Never an exception, never a tree that never was, never a connection that has lost something."""
    rng = random.Random(seed)
    state = State(tmp_path)
    were = [tree(state.store)]
    for n in range(8):
        state.write(f"n{n}", rng.randbytes(rng.randrange(30)))
        were.append(tree(state.store))
        if n in {2, 5}:
            state.checkpoint()
    state.close()
    path = rng.choice(sorted(tmp_path.glob("*.*")))
    data = bytearray(path.read_bytes())
    used = data.rstrip(b"\0")
    data[rng.randrange(len(used))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    found = recover(str(tmp_path))
    assert found is not None
    if found.complete:
        assert tree(found.store) == were[-1] or path.name.startswith("ledger")  # its front says where it ends
    else:
        assert len(found.store.items.connections) == 0
    assert tree(found.store) in were


def test_a_damaged_front_of_a_ledger_that_hides_its_end_is_found_by_the_journal(state: State, tmp_path: Path) -> None:
    """The ledger's end is one word; the journal's first record must follow what the ledger ends with."""
    for n in range(3):
        state.write(f"n{n}")
    path = newest(state, "ledger")
    data = bytearray(path.read_bytes())
    data[8:16] = (64).to_bytes(8, "little")
    path.write_bytes(data)
    found = back(state)
    assert found.sequence == 0
    box = Box(str(tmp_path / "box"))
    producer = Producer(box, 3, lambda: None)
    producer.append(b"record 4")
    with pytest.raises(JournalCorrupt):
        Consumer(box).resume(found.sequence, found.staged)


# ---- records in pieces


def large_record(state: State) -> bytes:
    output = (1, 0, random.Random(1).randbytes(5 * SEGMENT_MAX // 2), True, 0)
    return state.record(effects.NOTHING, outputs=(output,))


class Death(Exception):
    """Of State."""


@pytest.mark.parametrize("noted", [True, False], ids=["piece noted", "piece not noted"])
@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_a_record_in_pieces_outlives_state_at_any_of_them(
    state: State, tmp_path: Path, dies_at: int, *, noted: bool
) -> None:
    box = Box(str(tmp_path / "box"))
    body = large_record(state)
    Producer(box, 0, lambda: None).append(body)
    consumer = Consumer(box)

    def on_segment(sequence: int, piece: bytes) -> None:
        if sequence != dies_at or noted:
            state.survival.segment(sequence, piece)
        if sequence == dies_at:
            raise Death

    consumer.on_segment = on_segment
    try:
        for whole in consumer.records():
            state.applier.apply(whole)
            if noted:
                state.survival.record(consumer.taken, whole, {1: 0})
            raise Death
    except Death:
        pass
    found = back(state)
    assert found.complete
    again = Consumer(box)
    again.resume(found.sequence, found.staged)
    read = [(again.taken, whole) for whole in again.records()]
    if dies_at == 3 and noted:
        assert found.sequence == 3
        assert [sequence for sequence, _ in read] == [3], "whoever reads it sees that it was applied"
    else:
        assert read == [(3, body)]
        assert found.sequence == 0
    assert box.words[W_HEAD] == again._tail


def test_pieces_of_a_logic_that_died_are_forgotten(state: State) -> None:
    state.survival.segment(1, b"x" * 100)
    state.survival.segment(2, b"x" * 100)
    state.sequence = 2
    state.write("a")
    found = back(state)
    assert found.complete
    assert not found.staged
    assert "a" in tree(found.store)


# ---- the rest


def test_domains_that_wait_to_be_introduced_are_remembered(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.more = state.more | {"unsettled": True}
    state.checkpoint()
    assert back(state).unsettled
    state.survival.settled()
    assert not back(state).unsettled
    state.close()


def test_offers_and_event_channels_come_back(state: State) -> None:
    state.survival.learned(5, 55)
    state.store.domains.learn(5, 55)
    state.survival.bound(5, 11, 7)
    state.survival.offered(5, Offer(9, 3, 11, 7))
    found = back(state)
    assert found.bound == {5: (11, 7)}
    assert found.store.domains.offers == {5: Offer(9, 3, 11, 7)}
    assert found.next_id == 10
    state.survival.bound(5, 0, 0)
    assert back(state).bound == {}


def test_poison_penalties_and_counters_come_back(state: State, tmp_path: Path) -> None:
    box = Box(str(tmp_path / "box"))
    before = Restarts(state.store, box, lambda slot: None)
    before._tries = {(1, 640): [1, 0]}
    before.counts.update({"failed": 1})
    before._punish(1)
    state.survival.restarted("failed", before.consequences())
    state.survival.noted(before.note("Logic 1 ended"))
    state.survival.restarted("killed", before.consequences())
    after = Restarts(state.store, box, lambda slot: None)
    after.restore(back(state).restarts)
    assert after.consequences() == before.consequences()
    assert after.counts == {"failed": 1, "killed": 1}
    assert "Logic 1 ended" in after.report()
    state.more = state.more | {"restarts": after.kept()}
    state.checkpoint()
    last = Restarts(state.store, box, lambda slot: None)
    last.restore(back(state).restarts)
    assert last.kept() == after.kept()


def test_a_ledger_without_room_is_no_reason_to_die(
    state: State, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(ledger: Ledger, entry: bytes) -> None:
        raise OSError(28, "No space left on device")

    state.survival.keep(survival.CONNECTION, 0)
    assert state.theirs.recv(100).startswith(b"FDSTORE=1")
    monkeypatch.setattr(Ledger, "add", full)
    state.write("a")
    state.write("b")
    assert [record.message for record in caplog.records] == [
        "State would not survive its death from now on: [Errno 28] No space left on device"
    ]
    said = state.theirs.recv(100)
    assert said.startswith(b"FDSTOREREMOVE=1"), "nobody shall start a State that cannot know what this one does"
    assert os.listdir(state.directory) == [], "nor find what it knew"


def test_a_start_that_does_not_come_to_serve_is_counted(state: State) -> None:
    assert [survival.count_attempt(state.directory) for _ in range(3)] == [1, 2, 3]
    state.survival.ready()
    assert survival.count_attempt(state.directory) == 1
