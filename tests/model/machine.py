"""Random clients of a store: what the state machines of this folder have in common.

Two sockets of the privileged domain and two guests send all operations on nodes, watches, transactions and domains,
well-formed and not, in pieces of any size, in any order; domains are introduced, released, destroyed and made again.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar, Final, ParamSpec, cast

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.model import nodes, reference
from tests.model.harness import Harness
from tests.model.reference import Disagreement

BOGUS_TX: Final = 4711

WHO = st.integers(1, 4)
"""Two sockets, two guests."""
PATHS = st.sampled_from(
    [
        *(b"/", b"/a", b"/a/b", b"/a/b/c", b"/a/d", b"/e/f", b"/tool"),
        *(b"/local", b"/local/domain/5", b"/local/domain/5/x", b"/local/domain/5/x/y", b"/local/domain/6"),
        *(b"x", b"x/y", b"x/y/z", b"u"),
    ]
)
ANY_PATHS = st.one_of(
    PATHS, PATHS, PATHS, st.sampled_from([b"@introduceDomain", b"@releaseDomain", b"@foo", b"", b"//", b"/a/", b"/a.b"])
)
WATCHED = st.one_of(PATHS, st.sampled_from([b"/", b"/", b"@introduceDomain", b"@releaseDomain", b"@releaseDomain/5"]))
VALUES = st.sampled_from([b"", b"v", b"w", b"x\0y\0"])
TOKENS = st.sampled_from([b"", b"t", b"u"])
ENTRIES = st.one_of(
    st.builds(
        lambda a, d: b"%c%d" % (a, d), st.sampled_from(list(b"nrwb")), st.sampled_from([0, 5, 5, 6, 6, 9, 32757])
    ),
    st.sampled_from([b"r0x5", b"n05", b"b"[:1] + b"-1"]),
)
GOOD_LISTS = st.lists(ENTRIES, min_size=1, max_size=3)
LISTS = st.one_of(GOOD_LISTS, GOOD_LISTS, st.lists(st.one_of(ENTRIES, st.sampled_from([b"", b"x0", b"n", b"r1x"]))))
PIECES = st.lists(
    st.sampled_from(
        [b"\0", b"\0", b"/a", b"/a/b", b"x", b"n0", b"r5", b"T", b"F", b"1", b"-1", b"t", b"@foo", b" ", b"\xff"]
    ),
    max_size=7,
).map(b"".join)
OPS = st.one_of(
    st.sampled_from(sorted(nodes.ON_NODES | {4, 5, 6, 7, 10, 21, 23})),
    st.sampled_from([15, 16, 20, 27, 65535, 2**32 - 1]),
)
TX = st.sampled_from([0, 0, 0, 1, 1, 1, 1, 2, 3])
"""0 for none, else the nth open transaction of the caller, if there is one."""


P = ParamSpec("P")


def judged(action: Callable[P, None]) -> Callable[P, None]:
    """Who reads of a failure is told all that went before; after what is forgiven everything begins anew."""

    @wraps(action)
    def with_judgement(*args: P.args, **kwargs: P.kwargs) -> None:
        machine = cast(StoreMachine, args[0])
        try:
            action(*args, **kwargs)
        except Exception as e:
            if not (isinstance(e, Disagreement) and machine.forgives(e)):
                machine.all.spent = True
                e.add_note(machine.all.script.text())
                machine.all.script.keep()
                raise
            machine.all.leave()
            machine.begin()

    return with_judgement


def step(**strategies: st.SearchStrategy[Any]) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """A rule, judged."""

    def made(action: Callable[P, None]) -> Callable[P, None]:
        decorated: Callable[P, None] = cast(Any, rule)(**strategies)(judged(action))
        return decorated

    return made


class StoreMachine(RuleBasedStateMachine):
    """Clients, the store under test, and the model."""

    guests: ClassVar = (5, 6)

    def begin_with(self) -> Harness:
        """The store under test, with nothing in it."""
        raise NotImplementedError

    def forgives(self, disagreement: Disagreement) -> bool:
        """Whether the store under test may differ like this."""
        return False

    def begin(self) -> None:
        """A toolstack, the guests, and a second socket."""
        self.all = self.begin_with()
        self.second = self.all.connect()

    @initialize(
        watched=st.lists(st.tuples(WHO, WATCHED, TOKENS), max_size=8),
        opened=st.lists(st.tuples(PATHS, GOOD_LISTS), max_size=4),
    )
    def furnish(self, watched: list[tuple[int, bytes, bytes]], opened: list[tuple[bytes, list[bytes]]]) -> None:
        """Watches, and nodes that guests may do something with."""
        self.begin()
        for path, entries in opened:
            self.write(1, 0, path, b"")
            self.open_up(0, path, entries)
        for who, path, token in watched:
            self.watch(who, path, token, None)

    def teardown(self) -> None:
        if hasattr(self, "all"):
            try:
                if not self.all.spent:
                    self.all_is_the_same()
            finally:
                self.all.leave()

    def number(self, who: int) -> int:
        """The connection of the nth client; a guest's that has none is introduced."""
        if who <= 2:
            return (self.all.toolstack, self.second)[who - 1]
        domid = self.guests[who - 3]
        if domid not in self.all.model.exist:
            self.all.create(domid)
        number = self.all.model.ring(domid)
        return number if number is not None else self.all.introduce(domid)

    def tx_of(self, number: int, nth: int) -> int:
        """The id of its nth open transaction; the bogus one if it has fewer but some."""
        open_ids = list(self.all.model.connections[number].transactions)
        if not nth or not open_ids:
            return 0
        return open_ids[nth - 1] if nth <= len(open_ids) else BOGUS_TX

    def ask(self, number: int, op: int, tx_id: int, payload: bytes, cuts: int = 0) -> None:
        """One request."""
        self.all.ask(number, op, tx_id, payload, cuts)

    # ---- nodes

    @step(who=WHO, op=st.sampled_from([1, 2, 3, 12, 13]), nth=TX, path=ANY_PATHS, cuts=st.integers(0, 30))
    def one_path(self, who: int, op: int, nth: int, path: bytes, cuts: int) -> None:
        number = self.number(who)
        self.ask(number, op, self.tx_of(number, nth), path + b"\0", cuts)

    @step(who=WHO, nth=TX, path=ANY_PATHS, value=VALUES)
    def write(self, who: int, nth: int, path: bytes, value: bytes) -> None:
        number = self.number(who)
        self.ask(number, nodes.WRITE, self.tx_of(number, nth), path + b"\0" + value)

    @step(who=WHO, nth=TX, path=PATHS)
    def remove(self, who: int, nth: int, path: bytes) -> None:
        number = self.number(who)
        self.ask(number, nodes.RM, self.tx_of(number, nth), path + b"\0")

    @step(who=WHO, nth=TX, path=ANY_PATHS, entries=LISTS)
    def set_perms(self, who: int, nth: int, path: bytes, entries: list[bytes]) -> None:
        number = self.number(who)
        payload = b"".join(word + b"\0" for word in (path, *entries))
        self.ask(number, nodes.SET_PERMS, self.tx_of(number, nth), payload)

    @step(nth=TX, path=PATHS, entries=GOOD_LISTS)
    def open_up(self, nth: int, path: bytes, entries: list[bytes]) -> None:
        """The toolstack gives rights away, so that guests get somewhere."""
        payload = b"".join(word + b"\0" for word in (path, *entries))
        self.ask(1, nodes.SET_PERMS, self.tx_of(1, nth), payload)

    @step(who=WHO, nth=TX, path=ANY_PATHS, offset=st.sampled_from([b"0", b"2", b"3", b"-1", b"99", b"x"]))
    def directory_part(self, who: int, nth: int, path: bytes, offset: bytes) -> None:
        number = self.number(who)
        self.ask(number, nodes.DIRECTORY_PART, self.tx_of(number, nth), path + b"\0" + offset + b"\0")

    # ---- watches

    @step(who=WHO, path=ANY_PATHS, token=TOKENS, depth=st.sampled_from([None, None, b"0", b"1", b"2", b"-1", b"x"]))
    def watch(self, who: int, path: bytes, token: bytes, depth: bytes | None) -> None:
        if path[:1] == b"@":
            depth = None
        words = [path, token] if depth is None else [path, token, depth]
        self.ask(self.number(who), reference.WATCH, 0, b"".join(word + b"\0" for word in words))

    @step(who=WHO, path=ANY_PATHS, token=TOKENS)
    def unwatch(self, who: int, path: bytes, token: bytes) -> None:
        self.ask(self.number(who), reference.UNWATCH, BOGUS_TX, path + b"\0" + token + b"\0")

    @step(who=WHO, nth=TX)
    def reset_watches(self, who: int, nth: int) -> None:
        number = self.number(who)
        self.ask(number, reference.RESET_WATCHES, self.tx_of(number, nth), b"")

    # ---- transactions

    @step(who=WHO, nth=st.sampled_from([0, 0, 0, 1]))
    def start(self, who: int, nth: int) -> None:
        number = self.number(who)
        if len(self.all.model.connections[number].transactions) < 5:
            self.ask(number, reference.START, self.tx_of(number, nth), b"\0")

    @step(who=WHO, nth=TX, how=st.sampled_from([b"T\0", b"T\0", b"T\0", b"F\0", b"T"]))
    def end(self, who: int, nth: int, how: bytes) -> None:
        number = self.number(who)
        self.ask(number, reference.END, self.tx_of(number, nth), how)

    @step(
        who=WHO,
        other=WHO,
        inside=st.lists(st.tuples(st.sampled_from([1, 2, 3, 11, 11, 12, 13]), PATHS), min_size=1, max_size=3),
        outside=st.lists(st.tuples(st.sampled_from([11, 11, 12, 13]), PATHS), max_size=2),
    )
    def overlap(self, who: int, other: int, inside: list[tuple[int, bytes]], outside: list[tuple[int, bytes]]) -> None:
        """A transaction, and what somebody else does before it ends."""
        number, another = self.number(who), self.number(other)
        tx = self.all.ask(number, reference.START, 0, b"\0")
        if isinstance(tx, str):
            return
        for op, path in inside:
            self.ask(number, op, int(tx[:-1]), path + b"\0")
        for op, path in outside:
            self.ask(another, op, 0, path + b"\0")
        self.ask(number, reference.END, int(tx[:-1]), b"T\0")

    # ---- anything else

    @step(who=WHO, op=OPS, nth=TX, payload=PIECES, cuts=st.integers(0, 30))
    def anything(self, who: int, op: int, nth: int, payload: bytes, cuts: int) -> None:
        number = self.number(who)
        if op in {reference.WATCH, reference.START}:
            return
        self.ask(number, op, self.tx_of(number, nth), payload, cuts)

    @step(who=st.sampled_from([3, 4]), op=st.sampled_from(sorted(reference.PRIVILEGED_OPS)), payload=PIECES)
    def what_only_the_privileged_may(self, who: int, op: int, payload: bytes) -> None:
        self.ask(self.number(who), op, 0, payload)

    # ---- domains

    @step()
    def second_socket_comes_anew(self) -> None:
        self.all.disconnect(self.second)
        self.second = self.all.connect()

    @step(who=st.sampled_from([3, 4]))
    def introduce_again(self, who: int) -> None:
        self.number(who)
        self.all.introduce(self.guests[who - 3])

    @step(who=st.sampled_from([3, 4]), op=st.sampled_from([reference.RELEASE, reference.IS_INTRODUCED]))
    def about_a_domain(self, who: int, op: int) -> None:
        self.ask(self.all.toolstack, op, 0, b"%d\0" % self.guests[who - 3])

    @step(who=st.sampled_from([3, 4]))
    def domain_ends(self, who: int) -> None:
        if self.guests[who - 3] in self.all.model.exist:
            self.all.destroy(self.guests[who - 3])

    @step(of=st.sampled_from([b"5", b"6", b"0"]), to=st.sampled_from([b"5", b"6", b"9"]))
    def set_target(self, of: bytes, to: bytes) -> None:
        self.ask(self.all.toolstack, reference.SET_TARGET, 0, of + b"\0" + to + b"\0")

    @step(domid=st.sampled_from([b"5", b"6"]), name=st.sampled_from([b"nodes", b"watches"]), value=st.integers(1, 9))
    def set_quota(self, domid: bytes, name: bytes, value: int) -> None:
        self.ask(self.all.toolstack, reference.SET_QUOTA, 0, b"%s\0%s\0%d\0" % (domid, name, value))

    @invariant()
    @judged
    def all_agree(self) -> None:
        if hasattr(self, "all"):
            self.all.check()

    @judged
    def all_is_the_same(self) -> None:
        """At the end."""
        self.all.compare()
