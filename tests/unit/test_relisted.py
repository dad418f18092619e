"""A transaction that lists a node whose snapshot is lost gives the same names when State's ledger is repeated."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from protocol.errors import StoreError
from recovery_box.items import Connection
from tests.model.harness import assert_equal
from tests.unit.standing import Fork, same
from tests.unit.written import State
from xenstore_state import checkpoint, effects
from xenstore_state import tree as tree_module
from xenstore_state.effects import ABORT, COMMIT, DIRECTORY, MKDIR, PERFORM, READ, RM, START, WRITE
from xenstore_state.records import Applier, encode
from xenstore_state.recovered import recover
from xenstore_state.store import Store
from xenstore_state.survival import RECORD, RELISTED, Survival
from xenstore_state.transactions import Transaction

IMAGES: Final = 6
"""Before-images that an epoch may hold here."""


@pytest.fixture(autouse=True)
def soon_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "IMAGES_MAX", IMAGES)


class World:
    """What Logic does to its store, and State to its own by the records of that.

    There is a node with one child, and a transaction that has read it.
    """

    def __init__(self, directory: Path) -> None:
        self.state = State(directory)
        self.logic = Store()
        self.logic.connect(Connection(1, 1, 101, 0, privileged=True, socket=True))
        self.do(MKDIR, 0, b"/d/old")
        for n in range(IMAGES + 1):
            self.do(WRITE, 0, b"/busy/%d" % n, b"")
        self.do(START, 1)
        self.do(READ, 1, b"/d")

    def perform(self, kind: int, *arguments: Any) -> tuple[Any, bytes]:
        """In Logic: the answer or the error, and the record."""
        answer, outcome = None, ""
        try:
            answer = PERFORM[kind](self.logic, self.logic.items.connections.find(1), *arguments)
        except StoreError as e:
            answer = outcome = e.name
        return answer, encode((1, 0, kind, arguments, outcome, self.logic.tree.generation, ()))

    def do(self, kind: int, *arguments: Any) -> Any:
        """The answer or the error."""
        answer, body = self.perform(kind, *arguments)
        self.state.apply(body)
        return answer

    def lose(self) -> None:
        """So much happens that snapshots are lost."""
        for n in range(IMAGES + 1):
            self.do(WRITE, 0, b"/busy/%d" % n, b"other")

    def replace(self) -> None:
        """The node gives way to another one of its path."""
        self.do(RM, 0, b"/d")
        self.do(MKDIR, 0, b"/d/other")

    def back(self) -> Store:
        """What comes back if State dies now."""
        found = recover(self.state.directory)
        assert found is not None
        assert found.complete
        return found.store


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.state.close()


def told(store: Store) -> list[object]:
    """What clients were told in transactions that are open."""
    return [t.log for t in store.items.transactions]


def assert_comes_back(world: World) -> None:
    found = world.back()
    assert_equal(found, world.state.store)
    assert told(found) == told(world.state.store) == told(world.logic)


STEPS: Final = {
    "no loss": ("checkpoint make", [b"old"], "EAGAIN"),
    "asked before the loss": ("ask checkpoint lose make", [b"old"], "EAGAIN"),
    "loss behind the checkpoint": ("checkpoint lose make", [b"old", b"new"], None),
    "change before the checkpoint": ("make checkpoint lose", [b"old", b"new"], None),
    "loss before the checkpoint": ("lose checkpoint make", [b"old", b"new"], None),
    "loss between checkpoints": ("checkpoint lose checkpoint make", [b"old", b"new"], None),
    "replaced": ("replace checkpoint make", [b"old"], "EAGAIN"),
    "replaced, loss behind the checkpoint": ("replace checkpoint lose make", [b"old"], "EAGAIN"),
    "loss, then replaced": ("lose make replace checkpoint", [b"old", b"new"], "EAGAIN"),
    "replaced behind the checkpoint": ("lose checkpoint make replace", [b"old", b"new"], "EAGAIN"),
}
"""What happens, what the node's children are in the transaction then, and how that ends (None: it commits)."""


@pytest.mark.parametrize(("steps", "names", "end"), STEPS.values(), ids=STEPS)
def test_a_listing_comes_back_as_it_was(world: World, steps: str, names: list[bytes], end: str | None) -> None:
    for step in steps.split():
        if step == "make":
            world.do(MKDIR, 0, b"/d/new")
        elif step == "ask":
            world.do(DIRECTORY, 1, b"/d")
        else:
            {"lose": world.lose, "replace": world.replace, "checkpoint": world.state.checkpoint}[step]()
    assert world.do(DIRECTORY, 1, b"/d") == names
    assert_comes_back(world)
    world.state.checkpoint()
    assert_comes_back(world)
    world.do(MKDIR, 1, b"/made")
    committed = world.do(COMMIT, 1)
    assert (committed == end) if end else (world.do(READ, 0, b"/made") == b"")
    assert_comes_back(world)


@pytest.mark.parametrize(
    "steps", ["lose checkpoint", "lose replace checkpoint", "checkpoint", "lose checkpoint replace"]
)
def test_what_is_asked_only_after_the_death_is_answered_as_it_would_have_been(world: World, steps: str) -> None:
    for step in steps.split():
        {"lose": world.lose, "replace": world.replace, "checkpoint": world.state.checkpoint}[step]()
    world.do(MKDIR, 0, b"/d/new")
    found = world.back()
    by = found.items.connections.find(1)
    assert PERFORM[DIRECTORY](found, by, 1, b"/d") == world.do(DIRECTORY, 1, b"/d")


def test_state_dies_when_it_has_written_the_names_and_not_the_record(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.state.checkpoint()
    world.lose()
    world.do(MKDIR, 0, b"/d/new")
    _, body = world.perform(DIRECTORY, 1, b"/d")
    with monkeypatch.context() as dying:
        dying.setattr(Survival, "record", lambda *_: None)
        world.state.apply(body)
    found = world.back()
    assert told(found) != told(world.logic)
    Applier(found, lambda connection: 0).apply(body)
    assert told(found) == told(world.logic)


def test_a_checkpoint_settles_nothing(world: World, tmp_path: Path) -> None:
    """Whoever makes one in its own process goes on as one that makes none."""
    checkpoint.write(str(tmp_path / "one"), world.state.store, 0, {})
    world.lose()
    world.do(MKDIR, 0, b"/d/new")
    checkpoint.write(str(tmp_path / "one"), world.state.store, 0, {})
    assert world.do(DIRECTORY, 1, b"/d") == [b"old", b"new"]
    assert told(world.state.store) == told(world.logic)


def test_names_are_written_down_once_and_only_if_they_are_not_those_of_the_snapshot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[int] = []
    monkeypatch.setattr(Survival, "_note", lambda _, entry: noted.append(entry[0]))
    world.do(READ, 1, b"/busy")
    world.do(DIRECTORY, 1, b"/busy")
    assert set(noted) == {RECORD}
    world.lose()
    for _ in range(3):
        world.do(DIRECTORY, 1, b"/d")
    assert noted.count(RELISTED) == 1
    assert noted[noted.index(RELISTED) + 1 :] == [RECORD] * 3


def test_nothing_piles_up_in_logic(world: World) -> None:
    """Where nobody takes the names to write them down."""
    store, by = world.logic, world.logic.items.connections.find(1)
    for n in range(100):
        PERFORM[MKDIR](store, by, 0, b"/d/%d" % n)

    def many() -> None:
        for round_ in range(200):
            PERFORM[START](store, by, 2)
            PERFORM[READ](store, by, 2, b"/d")
            for n in range(IMAGES + 1):
                PERFORM[WRITE](store, by, 0, b"/busy/%d" % n, b"%d" % round_)
            PERFORM[MKDIR](store, by, 0, b"/d/new")
            assert b"new" in PERFORM[DIRECTORY](store, by, 2, b"/d")
            PERFORM[ABORT](store, by, 2)
            PERFORM[RM](store, by, 0, b"/d/new")
            store.tree.digest()

    PERFORM[ABORT](store, by, 1)
    many()
    tracemalloc.start()
    try:
        many()
        before, _ = tracemalloc.get_traced_memory()
        many()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 8192


def test_one_transaction_remembers_one_listing_for_whoever_writes_it_down(world: World) -> None:
    store, by = world.logic, world.logic.items.connections.find(1)
    for n in range(50):
        PERFORM[MKDIR](store, by, 0, b"/many/%d" % n)
        PERFORM[READ](store, by, 1, b"/many/%d" % n)
    for n in range(IMAGES + 1):
        PERFORM[WRITE](store, by, 0, b"/busy/%d" % n, b"other")
    for n in range(50):
        PERFORM[MKDIR](store, by, 0, b"/many/%d/new" % n)
        assert PERFORM[DIRECTORY](store, by, 1, b"/many/%d" % n) == [b"new"]
    transaction: Transaction = by.transactions[1]
    assert transaction.take_relisted() == ((b"many", b"49"), [b"new"])
    assert transaction.take_relisted() is None


def test_who_stands_by_follows(tmp_path: Path) -> None:
    fork = Fork(tmp_path)
    try:
        fork.state.write("d")
        fork.state.write("d/old")
        for n in range(IMAGES + 1):
            fork.state.write(f"busy{n}")
        fork.state.do(effects.START, 1)
        fork.state.do(effects.READ, 1, b"/d")
        fork.fork()
        for n in range(IMAGES + 1):
            fork.state.write(f"busy{n}", b"other")
        fork.state.write("d/new")
        fork.state.do(effects.DIRECTORY, 1, b"/d")
        (transaction,) = fork.state.store.items.transactions
        assert transaction.log[-1][-1] == [b"old", b"new"]
        same(fork.turn(), fork, digest=False)
    finally:
        fork.close()


def test_state_loses_a_snapshot_when_logic_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """State opens a savepoint for each record: what is overwritten again and again counts once all the same."""
    monkeypatch.setattr(tree_module, "IMAGES_MAX", 1000)
    monkeypatch.setattr(tree_module, "IMAGES_BYTES", 20_000)
    world.do(WRITE, 0, b"/p", b"x" * 2000)
    for _ in range(20):
        world.do(MKDIR, 0, b"/p/child")
        world.do(RM, 0, b"/p/child")
    world.do(MKDIR, 0, b"/d/new")
    assert world.do(DIRECTORY, 1, b"/d") == [b"old"]
    assert told(world.state.store) == told(world.logic)
