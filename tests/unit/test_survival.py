"""What State writes down: ledgers and checkpoints come back as they were, or are refused; descriptors keep their numbers."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.ops import Op
from protocol.wire import Message
from recovery_box import fdstore
from recovery_box.fdstore import Inherited
from recovery_box.ledger import Ledger, LedgerError, entries
from tests.model.support import examples
from xenstore_logic.embedded import Embedded
from xenstore_state import checkpoint
from xenstore_state.store import Store
from xenstored.comeback import KEPT

PATHS = st.sampled_from([b"/a", b"/a/b", b"/a/b/c", b"/d", b"/d/e", b"rel/x"])
REQUESTS = st.one_of(
    st.tuples(st.just(Op.WRITE), PATHS.flatmap(lambda p: st.sampled_from([p + b"\0", p + b"\0v", p + b"\0ww"]))),
    st.tuples(st.sampled_from([Op.RM, Op.MKDIR, Op.READ, Op.DIRECTORY, Op.GET_PERMS]), PATHS.map(lambda p: p + b"\0")),
    st.tuples(st.just(Op.SET_PERMS), PATHS.flatmap(lambda p: st.sampled_from([p + b"\0n0\0r5\0", p + b"\0n5\0"]))),
    st.tuples(st.just(Op.WATCH), PATHS.map(lambda p: p + b"\0token\0")),
    st.tuples(st.just(Op.TRANSACTION_START), st.just(b"\0")),
    st.tuples(st.just(Op.TRANSACTION_END), st.sampled_from([b"T\0", b"F\0"])),
    st.tuples(st.just(Op.RESET_WATCHES), st.just(b"\0")),
)
SCRIPTS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), REQUESTS), max_size=25)
"""Who (toolstack or guest), in which transaction, what."""


def play(embedded: Embedded, who: list[int], script: list[tuple[int, int, tuple[Op, bytes]]]) -> list[dict[int, bytes]]:
    """What came out of each request."""
    return [
        embedded.feed(who[actor], Message(op, 1, tx, payload).encode()).output for actor, tx, (op, payload) in script
    ]


def again(embedded: Embedded, path: Path) -> Embedded:
    """The same store, by way of a checkpoint."""
    checkpoint.write(str(path), embedded.store, 7, {"note": "kept"})
    store, parts = checkpoint.read(str(path))
    assert (parts["sequence"], parts["note"]) == (7, "kept")
    twin = Embedded()
    twin._framers.update({number: type(framer)() for number, framer in embedded._framers.items()})
    twin.store = twin.core.store = store
    return twin


def known(store: Store) -> object:
    """Everything, comparable."""
    parts = checkpoint._parts(store, 0)
    return parts, store.tree.owned, store.tree.memory, [c.subject.held for c in store.items.connections]


@examples(120)
@given(SCRIPTS, SCRIPTS)
def test_a_store_from_a_checkpoint_answers_as_the_one_it_was_made_of(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[int, int, tuple[Op, bytes]]],
    after: list[tuple[int, int, tuple[Op, bytes]]],
) -> None:
    """Open transactions, watches, rights and accounts included."""
    embedded = Embedded()
    who = [embedded.connect(), embedded.connect(5)]
    play(embedded, who, [(0, 0, (Op.WRITE, b"/local/domain/5\0")), (0, 0, (Op.SET_PERMS, b"/local/domain/5\0n5\0"))])
    play(embedded, who, before)
    twin = again(embedded, tmp_path_factory.mktemp("checkpoint") / "one")
    assert known(twin.store) == known(embedded.store)
    assert play(twin, who, after) == play(embedded, who, after)


def test_a_damaged_checkpoint_is_refused_wherever_the_damage_is(tmp_path: Path) -> None:
    embedded = Embedded()
    play(embedded, [embedded.connect()], [(0, 0, (Op.WRITE, b"/a\0v"))])
    path = tmp_path / "one"
    checkpoint.write(str(path), embedded.store, 1, {})
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(checkpoint.Damaged):
            checkpoint.read(str(path))
        path.write_bytes(whole[:at])
        with pytest.raises(checkpoint.Damaged):
            checkpoint.read(str(path))


def test_a_very_deep_tree_is_written_and_read_without_recursion(tmp_path: Path) -> None:
    embedded = Embedded()
    who = [embedded.connect()]
    play(embedded, who, [(0, 0, (Op.WRITE, b"/a" * 1800 + b"\0v"))])
    twin = again(embedded, tmp_path / "one")
    assert twin.store.tree.size == embedded.store.tree.size == 1803


@examples(60)
@given(st.lists(st.binary(max_size=300), max_size=30))
def test_a_ledger_gives_back_its_entries(tmp_path_factory: pytest.TempPathFactory, written: list[bytes]) -> None:
    path = str(tmp_path_factory.mktemp("ledger") / "one")
    ledger = Ledger(path)
    for number, entry in enumerate(written, 1):
        ledger.add(entry)
        assert list(entries(path)) == written[:number], "an entry is there at once, closed or not"
    ledger.close()
    assert list(entries(path)) == written


@pytest.mark.parametrize("size", [0, 1 << 20])
@pytest.mark.parametrize("front", [b"", struct.pack("=QQ", 0, 64)])
def test_a_ledger_whose_keeper_died_before_it_had_begun_it_is_empty(tmp_path: Path, size: int, front: bytes) -> None:
    path = tmp_path / "one"
    path.write_bytes(front + bytes(max(0, size - len(front))))
    assert list(entries(str(path))) == []


def test_a_ledger_grows_as_it_must(tmp_path: Path) -> None:
    path = str(tmp_path / "one")
    ledger = Ledger(path)
    large = [bytes([n]) * (700_000 + n) for n in range(6)]
    for entry in large:
        ledger.add(entry)
    assert list(entries(path)) == large


def test_a_ledger_ends_at_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "one"
    ledger = Ledger(str(path))
    for entry in (b"first", b"second", b"third"):
        ledger.add(entry)
    ledger.close()
    damaged = path.read_bytes().replace(b"second", b"sEcond")
    path.write_bytes(damaged)
    found = entries(str(path))
    assert next(found) == b"first"
    with pytest.raises(LedgerError):
        next(found)
    path.write_bytes(b"no ledger")
    with pytest.raises(LedgerError):
        list(entries(str(path)))


@examples(60)
@given(st.permutations(range(6)), st.booleans())
def test_descriptors_come_back_under_their_numbers_whatever_stands_there(order: list[int], elsewhere: bool) -> None:
    """Even when they have changed places; others that came along make room."""
    files = [os.memfd_create(f"file {n}") for n in range(6)]
    for n, fd in enumerate(files):
        os.write(fd, b"%d" % n)
    places = [fd + 100 for fd in files] if elsewhere else files
    kept = [Inherited("c", fd, places[order[n]]) for n, fd in enumerate(files[:4])]
    settled, others = fdstore.settle(kept, (files[4], files[5]))
    assert settled == {one.number: "c" for one in kept}
    assert len({*settled, *others}) == 6
    assert [os.pread(fd, 9, 0) for fd in [*(one.number for one in kept), *others]] == [b"%d" % n for n in range(6)]
    for fd in (*settled, *others):
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_sixteen_thousand_names_fit_into_the_environment_of_a_process() -> None:
    kept = 16_384 + 64
    names = ":".join(f"c.{fdstore._in_digits(fd)}" for fd in range(kept))
    assert len("LISTEN_FDNAMES=" + names) < 128 * 1024
    environment = {"LISTEN_FDS": str(kept), "LISTEN_FDNAMES": names}
    assert [(one.what, one.number) for one in fdstore.inherited(environment, KEPT)] == [("c", fd) for fd in range(kept)]


def test_what_was_kept_is_found_in_the_environment_once() -> None:
    environment = {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "box.7:c.8c", "LISTEN_PID": str(os.getpid()), "OTHER": "x"}
    assert fdstore.inherited(environment, KEPT) == [Inherited("box", 3, 7), Inherited("c", 4, 300)]
    assert environment == {"OTHER": "x"}
    assert fdstore.inherited(environment, KEPT) == []
    assert fdstore.inherited({"LISTEN_FDS": "1", "LISTEN_FDNAMES": "box.7", "LISTEN_PID": "1"}, KEPT) == []


def test_descriptors_of_others_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fdstore, "FIRST", 700)
    given = [fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 700) for _ in range(3)]
    assert given == [700, 701, 702]
    names = ["xenstored.socket", "unknown", "box.7"]
    environment = {"LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
    assert fdstore.inherited(environment, KEPT) == [Inherited("box", 702, 7)]
    for fd in given[:2]:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    os.close(given[2])


def test_a_checkpoint_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: str) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="no space"):
        checkpoint.write(str(tmp_path / "checkpoint.1"), Store(), 0, {})
    assert list(tmp_path.iterdir()) == []


def test_whoever_keeps_descriptors_is_told_as_systemd_is(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        store = fdstore.at(address)
        read, write = os.pipe()
        store.keep("c", read)
        text, fds, _, _ = socket.recv_fds(systemd, 1000, 4)
        name = b"c." + fdstore._in_digits(read).encode()
        assert text == b"FDSTORE=1\nFDPOLL=0\nFDNAME=" + name
        os.write(write, b"x")
        assert os.read(fds[0], 1) == b"x"
        store.drop(read)
        assert systemd.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=" + name
        for fd in (read, write, *fds):
            os.close(fd)


def test_no_more_is_kept_than_there_is_room_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """systemd closes what goes beyond FileDescriptorStoreMax; it is not even asked."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.setblocking(False)
        store = fdstore.at(address, 1)
        pair = os.pipe()
        for fd in pair:
            store.keep("c", fd)
        assert len(caplog.records) == 1
        assert b"FDSTORE=1" in systemd.recv(1000)
        store.drop(pair[1])
        with pytest.raises(BlockingIOError):
            systemd.recv(1000)
        store.drop(pair[0])
        store.keep("c", pair[1])
        assert b"FDSTOREREMOVE=1" in systemd.recv(1000)
        assert b"FDSTORE=1" in systemd.recv(1000)
        for fd in pair:
            os.close(fd)
