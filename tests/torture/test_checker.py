"""The checker accepts what can be explained and rejects what cannot; so does the one of watch events."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.support import examples
from tests.torture import watching
from tests.torture.checker import STALE, UNWRITTEN, check
from tests.torture.history import LIST, NEVER, READ, REMOVE, WRITE, Operation, State, Step, performed
from tests.torture.watching import Change, Event


def write(client: int, asked: float, answered: float, value: bytes, name: bytes = b"x") -> Operation:
    return Operation(client, asked, answered, (Step(WRITE, name, value),))


def read(client: int, asked: float, answered: float, value: bytes | None, name: bytes = b"x") -> Operation:
    return Operation(client, asked, answered, (Step(READ, name, value),))


def remove(client: int, asked: float, answered: float, name: bytes = b"x") -> Operation:
    return Operation(client, asked, answered, (Step(REMOVE, name),))


def listed(client: int, asked: float, answered: float, *names: bytes) -> Operation:
    return Operation(client, asked, answered, (Step(LIST, b"", names),))


def both(client: int, asked: float, answered: float, x: bytes, y: bytes, new_x: bytes, new_y: bytes) -> Operation:
    steps = (Step(READ, b"x", x), Step(READ, b"y", y), Step(WRITE, b"x", new_x), Step(WRITE, b"y", new_y))
    return Operation(client, asked, answered, steps)


GOOD = {
    "nothing": [],
    "one after the other": [write(1, 0, 1, b"a"), read(2, 2, 3, b"a")],
    "a read beside a write may see either": [write(1, 0, 9, b"a"), read(2, 1, 2, None), read(2, 3, 4, b"a")],
    "writes at once, in either order": [write(1, 0, 9, b"a"), write(2, 0, 9, b"b"), read(3, 10, 11, b"a")],
    "two at once from one client": [write(1, 0, 5, b"a"), read(1, 0, 6, b"a"), remove(1, 0, 7), read(1, 0, 8, None)],
    "never answered, but done": [write(1, 0, NEVER, b"a"), read(2, 5, 6, b"a")],
    "never answered, and not done": [write(1, 0, NEVER, b"a"), read(2, 5, 6, None)],
    "names in order of creation": [
        write(1, 0, 1, b"1", b"b"),
        write(1, 2, 3, b"1", b"a"),
        write(1, 4, 5, b"2", b"b"),
        listed(2, 6, 7, b"b", b"a"),
        remove(1, 8, 9, b"b"),
        write(1, 10, 11, b"3", b"b"),
        listed(2, 12, 13, b"a", b"b"),
    ],
    "transactions swap": [
        write(1, 0, 1, b"1", b"x"),
        write(1, 2, 3, b"2", b"y"),
        both(2, 4, 9, b"1", b"2", b"3", b"4"),
        both(3, 4, 9, b"3", b"4", b"5", b"6"),
        read(1, 10, 11, b"6", b"y"),
    ],
}

BAD = {
    "a lost write": ([write(1, 0, 1, b"a"), read(2, 2, 3, None)], STALE),
    "a write lost later, having been seen": (
        [write(1, 0, 1, b"a"), write(1, 2, 3, b"b"), read(2, 4, 5, b"b"), read(2, 6, 7, b"a")],
        STALE,
    ),
    "a write done twice": (
        [write(1, 0, 1, b"a"), read(2, 2, 3, b"a"), write(2, 4, 5, b"b"), read(1, 6, 7, b"b"), read(1, 8, 9, b"a")],
        STALE,
    ),
    "a removal done twice": ([write(1, 0, 1, b"a"), remove(1, 2, 3), write(2, 4, 5, b"b"), read(1, 6, 7, None)], STALE),
    "a value that nobody wrote": ([write(1, 0, 1, b"a"), read(2, 2, 3, b"a\0")], UNWRITTEN),
    "seen new, then old": ([write(1, 0, 9, b"a"), read(2, 1, 2, b"a"), read(3, 3, 4, None)], STALE),
    "seen before it was asked for": ([read(2, 0, 1, b"a"), write(1, 2, 3, b"a")], STALE),
    "against the order of one client": ([write(1, 0, 9, b"a"), read(1, 0, 9, None)], STALE),
    "half a transaction": (
        [
            write(1, 0, 1, b"1", b"x"),
            write(1, 2, 3, b"2", b"y"),
            both(2, 4, 9, b"1", b"2", b"3", b"4"),
            read(3, 4, 5, b"3", b"x"),
            read(3, 6, 7, b"2", b"y"),
        ],
        STALE,
    ),
    "two transactions that read the same": (
        [
            write(1, 0, 1, b"1", b"x"),
            write(1, 2, 3, b"2", b"y"),
            both(2, 4, 9, b"1", b"2", b"3", b"4"),
            both(3, 4, 9, b"1", b"2", b"5", b"6"),
        ],
        STALE,
    ),
    "a trace of a transaction that failed": (
        [write(1, 0, 1, b"1", b"x"), listed(2, 2, 3, b"x", b"y")],
        STALE,
    ),
    "names in a wrong order": (
        [write(1, 0, 1, b"1", b"b"), write(1, 2, 3, b"1", b"a"), listed(2, 4, 5, b"a", b"b")],
        STALE,
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_it_accepts(name: str) -> None:
    verdict = check(GOOD[name])
    assert verdict.linearizable, verdict


@pytest.mark.parametrize("name", BAD)
def test_it_rejects(name: str) -> None:
    history, kind = BAD[name]
    verdict = check(history)
    assert not verdict.linearizable
    assert verdict.stuck
    assert verdict.kind == kind


def made_up(rng: random.Random, clients: int, length: int) -> list[Operation]:
    """A history that is linearizable: each operation is done at an instant, and seen to last for a while around it."""
    state: State = ()
    free = [0.0] * clients
    history = []
    now = 0.0
    for number in range(length):
        now += rng.random()
        client = rng.choice([c for c in range(clients) if free[c] < now] or [0])
        now = max(now, free[client])
        nodes = dict(state)
        name = rng.choice((b"x", b"y", b"z"))
        new = Step(WRITE, name, b"%d" % number)
        steps = rng.choice(
            (
                (new,),
                (new,),
                (Step(READ, name, nodes.get(name)),),
                (Step(READ, name, nodes.get(name)),),
                (Step(REMOVE, name),),
                (Step(LIST, b"", tuple(nodes)),),
                (Step(READ, b"x", nodes.get(b"x")), Step(READ, b"y", nodes.get(b"y")), new),
            )
        )
        after = performed(state, steps)
        assert after is not None
        state = after
        asked = rng.uniform(max(free[client], now - 3), now)
        free[client] = now + rng.random() * 3
        history.append(Operation(client, asked, free[client], steps))
    rng.shuffle(history)
    return sorted(history, key=lambda operation: operation.asked)


@given(st.integers(0, 2**32), st.integers(1, 5))
@examples(100)
def test_whatever_happened_in_some_order_is_accepted(seed: int, clients: int) -> None:
    verdict = check(made_up(random.Random(seed), clients, 60))
    assert verdict.linearizable
    assert verdict.placed == 60


@given(st.integers(0, 2**32))
@examples(100)
def test_a_read_of_something_long_overwritten_is_rejected(seed: int) -> None:
    rng = random.Random(seed)
    history = made_up(rng, 4, 60)
    end = max(operation.answered for operation in history)
    old, new = write(1, end + 1, end + 2, b"old"), write(2, end + 3, end + 4, b"new")
    late = read(3, end + 5, end + 6, b"old")
    assert check([*history, old, new]).linearizable
    assert not check([*history, old, new, late]).linearizable


def explained(history: list[Operation]) -> bool:
    """The definition, word for word."""
    for order in itertools.permutations(range(len(history))):
        state: State | None = ()
        for place, n in enumerate(order):
            operation = history[n]
            early = any(
                history[m].answered < operation.asked or (history[m].client == operation.client and m < n)
                for m in order[place + 1 :]
            )
            state = None if early or state is None else performed(state, operation.steps)
        if state is not None:
            return True
    return False


@given(st.integers(0, 2**32))
@examples(300)
def test_it_says_what_trying_every_order_says(seed: int) -> None:
    rng = random.Random(seed)
    history = []
    for number in range(5):
        asked = rng.randrange(6)
        kinds = (write, read, read)
        values = (b"a", b"b", b"c")
        what = rng.choice(kinds)(number % 3, asked, asked + rng.randrange(1, 4), rng.choice(values))
        history.append(what)
    history.sort(key=lambda operation: operation.asked)
    for client in range(3):  # nobody is answered out of order
        own = [n for n, operation in enumerate(history) if operation.client == client]
        times = sorted(history[n].answered for n in own)
        for n, answered in zip(own, times, strict=True):
            history[n] = history[n]._replace(answered=answered)
    assert check(history).linearizable == explained(history)


def test_a_long_history_of_a_busy_group_is_no_trouble() -> None:
    assert check(made_up(random.Random(1), 5, 20_000)).linearizable


P, Q = b"/p", b"/q"


@pytest.mark.parametrize(
    ("changes", "events", "missed", "doubled"),
    [
        ([], [], [], []),
        ([(P, 1)], [(P, 2)], [], []),
        ([(P, 1)], [], [P], []),
        ([(P, 1)], [(P, 2), (P, 3)], [], [P]),
        ([(P, 1)], [(P, 0.5)], [P], [P]),
        ([(P, 1), (P, 2)], [(P, 3)], [], []),
        ([(P, 1), (P, 3)], [(P, 2)], [P], []),
        ([(P, 1), (P, 3)], [(P, 2), (P, 2.5), (P, 4)], [], [P]),
        ([(P, 1), (Q, 1)], [(P, 2)], [Q], []),
        ([(P, 1)], [(P, 2), (Q, 3)], [], [Q]),
        ([(P, 1), (P, 3)], [(P, 2), (P, 2.5)], [P], [P]),
    ],
)
def test_events(
    changes: list[tuple[bytes, float]], events: list[tuple[bytes, float]], missed: list[bytes], doubled: list[bytes]
) -> None:
    told = watching.check([Change(path, asked, True) for path, asked in changes], [Event(*event) for event in events])
    assert told == (missed, doubled)


def test_what_may_have_changed_nothing_need_not_be_told_but_may() -> None:
    change = Change(P, 1, False)
    assert watching.check([change], []) == ([], [])
    assert watching.check([change], [Event(P, 2)]) == ([], [])
