"""A Logic that publishes what cannot be true is killed; nothing of it happens, and nobody goes on believing it.

The test plays the part of a Logic gone mad: it stops the real one and writes into the recovery box in its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgpack
import pytest

from recovery_box.box import JOURNAL_SIZE, PAGE, W_HEAD
from tests.conformance.wire import Client, Closed, Op, strings
from tests.oracle.daemons import OurDaemon
from tests.recovery.boxview import ENTRY, BoxView
from tests.recovery.logic import PATIENCE, Logic, restarts, state_stopped, stopped, wait_for_restarts
from xenstore_state import effects

LOG = "cannot be true"
NOT_MADE = 99_999
"""No connection has this id."""
Fields = list[Any]


@pytest.fixture
def view(daemon: OurDaemon) -> Iterator[BoxView]:
    with BoxView(daemon.pid, writable=True) as opened:
        yield opened


@pytest.fixture
def accused(daemon: OurDaemon) -> Iterator[Client]:
    """The client in whose name false records are published."""
    with Client(daemon.socket) as client:
        client.watch("/", "accused")
        client.write("/accused", b"before")
        client.forget()
        yield client


@pytest.fixture
def other(daemon: OurDaemon) -> Iterator[Client]:
    with Client(daemon.socket) as client:
        client.write("/other", b"before")
        yield client


def wait_until_drained(view: BoxView) -> None:
    deadline = time.monotonic() + PATIENCE
    while not view.drained:
        assert time.monotonic() < deadline, "State does not read the journal"
        time.sleep(0.001)


def wait_for_death(daemon: OurDaemon, logic: Logic) -> None:
    """State kills this Logic.  A new connection makes it look at the journal at once."""
    Client(daemon.socket).close()
    deadline = time.monotonic() + PATIENCE
    while not restarts(daemon):
        assert time.monotonic() < deadline, f"State trusts Logic {logic.pid}:\n{daemon.output()}"
        time.sleep(0.002)


def true_record(view: BoxView) -> Fields:
    """The fields of a record that would be true: the last one's connection writes /forged."""
    last = view.last_record()
    assert last is not None
    arguments = (0, b"/forged", b"by a record")
    output = (last.connection, view.slot_of(last.connection).made, b"", False, 0)
    return [last.connection, last.head, effects.WRITE, arguments, "", last.generation + 1, (output,)]


def publish(daemon: OurDaemon, view: BoxView, body: bytes, **entry: int) -> None:
    """Publishes a record in the place of Logic, and waits until State has killed it for that."""
    with stopped(daemon) as logic:
        wait_until_drained(view)
        view.publish(body, **entry)
        wait_for_death(daemon, logic)
    assert LOG in daemon.output()


def forge(daemon: OurDaemon, view: BoxView, accused: Client, change: Callable[[Fields], object]) -> None:
    """Publishes a record of the accused client's in which something was changed."""
    accused.write("/accused", b"last")
    accused.events_so_far()
    with stopped(daemon):
        fields = true_record(view)
    change(fields)
    publish(daemon, view, msgpack.packb(fields))


def is_closed(client: Client) -> bool:
    """Whether the daemon has hung up."""
    with suppress(Closed):
        client.read("/tool/xenstored")
        return False
    return True


def put(index: int, value: object) -> Callable[[Fields], object]:
    """Replaces a field."""
    return lambda fields: fields.__setitem__(index, value)


def output(**change: object) -> Callable[[Fields], object]:
    """Replaces parts of the output."""

    def do(fields: Fields) -> None:
        names = ("connection", "position", "data", "pending", "deadline")
        before = dict(zip(names, fields[6][0], strict=True))
        fields[6] = (tuple((before | change)[name] for name in names),)

    return do


LIES: dict[str, Callable[[Fields], object]] = {
    "an effect that is none": put(2, 9999),
    "arguments of other types": put(3, (b"0", "/forged", b"")),
    "arguments too few": put(3, (0, b"/forged")),
    "a path that is none": put(3, (0, b"/forged//", b"")),
    "a transaction that is not open": put(3, (77, b"/forged", b"")),
    "another outcome": put(4, "EACCES"),
    "another generation": put(5, 1),
    "a commit of nothing": lambda f: (put(2, effects.COMMIT)(f), put(3, (1,))(f)),
    "a transaction with the id 0": lambda f: (put(2, effects.START)(f), put(3, (0,))(f)),
    "an unwatch of nothing": lambda f: (put(2, effects.UNWATCH)(f), put(3, (b"/forged", b"t"))(f)),
    "output for nobody": output(connection=NOT_MADE),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_false_record_is_not_applied_and_its_connection_closed(
    daemon: OurDaemon, view: BoxView, accused: Client, other: Client, lie: str
) -> None:
    forge(daemon, view, accused, LIES[lie])
    assert is_closed(accused)
    assert not is_closed(other), "it has nothing to do with that"
    assert other.read("/accused") == b"last"
    assert not other.exists("/forged"), "the false record has had an effect"
    other.write("/other", b"after")
    with Client(daemon.socket) as client:
        assert client.read("/other") == b"after"
        assert client.call(Op.CONTROL, strings("check")) == b"OK\0"
    wait_for_restarts(daemon, 1)
    assert "accounts say" not in daemon.output()


def dump(client: Client, path: str = "/") -> list[tuple[str, bytes, list[bytes]]]:
    """Everything below a node: paths in order, values, permission lists."""
    nodes = [(path, client.read(path), client.get_perms(path))]
    for name in client.directory(path):
        nodes += dump(client, f"{path.rstrip('/')}/{name.decode()}")
    return nodes


TX = 1
CHANGES: dict[str, tuple[int, tuple[object, ...]]] = {
    "a value": (effects.WRITE, (0, b"/tree/b", b"new")),
    "new nodes": (effects.WRITE, (0, b"/tree/new/deep", b"")),
    "an empty node": (effects.MKDIR, (0, b"/tree/new")),
    "a subtree removed": (effects.RM, (0, b"/tree/b")),
    "everything removed": (effects.RM, (0, b"/tree")),
    "a permission list": (effects.SET_PERMS, (0, b"/tree/b", ((1, 0), (2, 9)))),
    "a commit": (effects.COMMIT, (TX,)),
}


@pytest.mark.parametrize("lie", [put(4, "EAGAIN"), put(5, 1)], ids=["outcome", "generation"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_lying_record_changed_is_undone_completely(
    daemon: OurDaemon,
    view: BoxView,
    accused: Client,
    other: Client,
    change: str,
    lie: Callable[[Fields], object],
) -> None:
    for name in ("c", "b", "a", "b/x", "b/x/y", "b/w"):
        other.write(f"/tree/{name}", name.encode())
    other.set_perms("/tree/b", "n0", "r7")
    assert accused.start() == TX
    accused.write("/tree/in/transaction", b"", tx=TX)
    accused.write("/tree/a", b"by commit", tx=TX)
    accused.rm("/tree/b", tx=TX)
    accused.write("/tree/b", b"again", tx=TX)
    kind, arguments = CHANGES[change]
    accused.write("/accused", b"last")
    before = dump(other)
    forge(daemon, view, accused, lambda f: (put(2, kind)(f), put(3, arguments)(f), lie(f)))
    assert is_closed(accused)
    assert dump(other) == before
    other.write("/tree/b/after")
    assert other.directory("/tree/b") == [b"x", b"w", b"after"]
    assert other.call(Op.CONTROL, strings("check")) == b"OK\0"
    assert "accounts say" not in daemon.output()
    assert len(wait_for_restarts(daemon, 1)) == 1


def test_the_true_record_that_the_lies_are_made_of_is_applied(
    daemon: OurDaemon, view: BoxView, accused: Client, other: Client
) -> None:
    accused.write("/accused", b"last")
    with stopped(daemon) as logic:
        wait_until_drained(view)
        view.publish(msgpack.packb(true_record(view)))
        Client(daemon.socket).close()
        wait_until_drained(view)
        logic.kill()
    assert other.read("/forged") == b"by a record"
    assert LOG not in daemon.output()


@pytest.mark.parametrize("body", [b"", b"\0" * 40, b"\xc1not msgpack", msgpack.packb([1, 2]), msgpack.packb({1: 2})])
def test_when_a_record_does_not_say_whom_it_concerns_everybody_is_closed(
    daemon: OurDaemon, view: BoxView, accused: Client, other: Client, body: bytes
) -> None:
    publish(daemon, view, body)
    assert is_closed(accused)
    assert is_closed(other)
    with Client(daemon.socket) as client:
        assert client.read("/other") == b"before"
        client.write("/after")


def damage_checksum(view: BoxView) -> None:
    _damage_entry(view, 4)


def damage_length(view: BoxView) -> None:
    _damage_entry(view, 0)


def damage_sequence(view: BoxView) -> None:
    _damage_entry(view, 8)


def damage_body(view: BoxView) -> None:
    _damage_entry(view, ENTRY.size + 20)


def _damage_entry(view: BoxView, offset: int) -> None:
    """Flips bits in the last entry but one."""
    entries = view.entries_back()
    next(entries)
    index = next(entries)[0]
    view.memory[PAGE + index % JOURNAL_SIZE + offset] ^= 0x55


def head_unaligned(view: BoxView) -> None:
    view.words[W_HEAD] += 4


def head_far_ahead(view: BoxView) -> None:
    view.words[W_HEAD] += 1 << 40


def head_far_behind(view: BoxView) -> None:
    view.words[W_HEAD] = 0


def head_a_little_ahead(view: BoxView) -> None:
    view.words[W_HEAD] += 64


DAMAGES = (
    damage_checksum,
    damage_length,
    damage_sequence,
    damage_body,
    head_unaligned,
    head_far_ahead,
    head_far_behind,
    head_a_little_ahead,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_nobody_goes_on_believing_a_write_that_was_lost_with_a_damaged_record(
    daemon: OurDaemon, view: BoxView, accused: Client, other: Client, damage: Callable[[BoxView], None]
) -> None:
    with state_stopped(daemon):
        for number, client in enumerate((accused, other, accused)):
            client.write(f"/written/{number}")
        with stopped(daemon) as logic:
            damage(view)
            logic.kill()
    with Client(daemon.socket) as client:
        client.write("/after")
        there = [client.exists(f"/written/{number}") for number in range(3)]
    assert LOG in daemon.output()
    assert is_closed(accused) or (there[0] and there[2]), f"writes in the store: {there}"
    assert is_closed(other) or there[1], f"writes in the store: {there}"
    assert sorted(there, reverse=True) == there, "a record behind the damaged one was applied"
    wait_for_restarts(daemon, 1)
