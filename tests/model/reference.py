"""A XenStore that is obviously right: one dictionary of nodes, one list of watches, searched from end to end.

It follows the specification word by word and costs what it costs.  `Reference.serve` is told a request and what the
store under test made of it, and fails where that is not what the specification says.

Transactions are lists of what was asked and answered.  A commit is right if doing everything again now, in one go, gives
the same answers; it may be refused only if that gives another answer, or leaves a written node with another permission
list than it could have had inside the transaction.  While a transaction is open, its answers must be those it would have
got at some moment since its beginning, unless the very nodes have changed meanwhile.

Knows nothing of how the store under test works: no imports from it.
"""

import re
from collections import Counter
from itertools import pairwise
from typing import Final, NamedTuple

from tests.model.nodes import (
    ANYBODY,
    DIRECTORY_PART,
    GET_PERMS,
    MKDIR,
    OK,
    ON_NODES,
    SET_PERMS,
    WRITE,
    Acl,
    Entry,
    Happening,
    Node,
    Refused,
    Request,
    Tree,
    Who,
    is_below,
    levels,
    parent_of,
    rights,
)

WATCH, UNWATCH, START, END, GET_DOMAIN_PATH, EVENT, ERROR, RESET_WATCHES, GET_FEATURE = 4, 5, 6, 7, 10, 15, 16, 21, 23
PRIVILEGED_OPS: Final = frozenset({0, 8, 9, 17, 18, 19, 24, 25, 26})
OTHER_OPS: Final = frozenset({WATCH, UNWATCH, START, END, GET_DOMAIN_PATH, RESET_WATCHES, GET_FEATURE})
KNOWN: Final = ON_NODES | PRIVILEGED_OPS | OTHER_OPS

Outcome = bytes | str
"""The reply's payload, or the name of the error."""


class Asked(NamedTuple):
    """A request inside a transaction, and what was answered."""

    request: Request
    outcome: Outcome


def again(tree: Tree, who: Who, requests: list[Request]) -> tuple[Tree, list[Outcome]]:
    """Does everything on a copy of the tree."""
    tree = tree.copy()
    outcomes: list[Outcome] = []
    for request in requests:
        try:
            outcomes.append(tree.perform(who, request)[0])
        except Refused as e:
            outcomes.append(e.name)
    return tree, outcomes


def left_behind(tree: Tree, who: Who, requests: list[Request]) -> dict[bytes, Acl | None]:
    """Permission lists of the nodes that were asked to be written, after everything was done on this tree."""
    after, _ = again(tree, who, requests)
    written = [r.path for r in requests if r.op in {WRITE, MKDIR, SET_PERMS}]
    return {path: after.acl(path) if path in after.nodes else None for path in written}


def told_at_commit(before: Tree, who: Who, requests: list[Request]) -> list[Happening]:
    """At most one thing a node: that it is another now, or that it is gone.

    What was asked for by name is told to everybody who watches; what went away because something above it did only to
    exact watches.  Whoever could read a node before may know, too.
    """
    tree = before.copy()
    still_there = set(before.nodes)
    loud: dict[bytes, tuple[Acl, ...]] = {}
    """By path: the permission list with which it went away, if that was asked for by name."""
    quiet: dict[bytes, tuple[Acl, ...]] = {}
    """By path: permission lists of the node and its parent when something above it was removed."""
    for request in requests:
        try:
            happened = tree.perform(who, request)[1]
        except Refused:
            continue
        for path, exact, lists in happened:
            if path in tree.nodes:
                loud.setdefault(path, ())
                continue
            if not loud.get(path):
                loud.pop(path, None)
            if path in still_there:
                still_there.remove(path)
                (quiet if exact else loud)[path] = lists if exact else lists[:1]
    told = []
    for path, lists in loud.items():
        # One that went away by name counts as gone, even if it was made again.
        of = [(before, path), (tree, parent_of(path)), *([] if lists else [(tree, path)])]
        there = tuple(t.acl(p) for t, p in of if p in t.nodes)
        told.append(Happening(path, False, (*lists, *there)))
    spoken_of = {each.path for each in told}
    return told + [Happening(path, True, lists) for path, lists in quiet.items() if path not in spoken_of]


class Watch(NamedTuple):
    """One registered watch."""

    connection: int
    path: bytes
    token: bytes
    depth: int | None
    cut: int
    """Bytes that its events' paths lack at the front."""


class Transaction:
    """What was asked and answered in it."""

    def __init__(self, began: int) -> None:
        self.began = began
        self.log: list[Asked] = []

    @property
    def requests(self) -> list[Request]:
        return [asked.request for asked in self.log]


class Connection:
    """A peer."""

    def __init__(self, domid: int, *, socket: bool) -> None:
        self.who = Who(domid, domid == 0)
        self.bound = domid != 0 and not socket
        """Quotas apply."""
        self.home = b"/local/domain/%d" % domid
        self.transactions: dict[int, Transaction] = {}
        self.last_tx_id = 0


Message = tuple[int, bytes]
"""Type and payload."""


class Reference:
    """The whole store."""

    def __init__(self, quotas: dict[str, int]) -> None:
        """Quotas of guests: watches, transactions, node-permissions; a number reached is too much."""
        mine = (Entry("n", 0),)
        nodes = dict.fromkeys((b"/", b"/tool", b"/tool/xenstored", b"@introduceDomain"), Node(b"", mine))
        nodes[b"@releaseDomain"] = Node(b"", (*mine, Entry("r", ANYBODY)))
        self.history = [Tree(nodes)]
        """The tree after each change; the last one is the present."""
        self.watches: list[Watch] = []
        self.connections: dict[int, Connection] = {}
        self.domains = {0}
        self.quotas = quotas

    @property
    def tree(self) -> Tree:
        """The present."""
        return self.history[-1]

    def connect(self, number: int, domid: int, *, socket: bool) -> None:
        self.connections[number] = Connection(domid, socket=socket)
        self.domains.add(domid)

    def disconnect(self, number: int) -> None:
        del self.connections[number]
        self.watches = [w for w in self.watches if w.connection != number]

    # ---- requests

    def serve(self, number: int, op: int, tx_id: int, payload: bytes, said: dict[int, list[Message]]) -> None:
        """A request and all messages it caused, by connection.  Fails unless they are right."""
        by = self.connections[number]
        replies = [message for message in said.get(number, []) if message[0] != EVENT]
        assert len(replies) == 1, f"one reply, not {replies}"
        reply = replies[0]
        events: dict[int, list[Message]] = {}
        late: list[Message] = []
        loose = False
        try:
            if op not in KNOWN:
                raise Refused("ENOSYS")
            if op in PRIVILEGED_OPS and not by.who.privileged:
                raise Refused("EACCES")
            if tx_id and op not in {WATCH, UNWATCH} and tx_id not in by.transactions:
                raise Refused("ENOENT")
            if op in ON_NODES:
                answer, happened = self._on_node(by, tx_id, self._parse(by, op, payload), reply)
                events = self._events(happened)
            elif op == END:
                answer, happened = self._end(by, tx_id, payload, reply)
                events, loose = self._events(happened), True
            elif op in {WATCH, UNWATCH, START, RESET_WATCHES}:
                answer, late = self._other(number, by, op, tx_id, payload)
            else:
                assert reply[0] in {op, ERROR}
                op, answer = reply
            expected = op, answer
        except Refused as e:
            expected = ERROR, e.name.encode() + b"\0"
        if op == DIRECTORY_PART and reply[0] == op:
            generation, _, rest = reply[1].partition(b"\0")
            assert generation.isdigit()
            reply = op, rest
        assert reply == expected, f"replied {reply}, should have {expected}"
        for other in self.connections:
            heard = [message for message in said.get(other, []) if message[0] == EVENT]
            wanted = events.get(other, []) + (late if other == number else [])
            if loose:
                assert Counter(heard) == Counter(wanted), f"connection {other} heard {heard}, should have {wanted}"
            else:
                assert heard == wanted, f"connection {other} heard {heard}, should have {wanted}"
        if number in said:
            at = [message[0] for message in said[number]].index(replies[0][0])
            assert at == len(said[number]) - 1 - len(late), (
                "events come before the reply, a watch's first one behind it"
            )

    def _parse(self, by: Connection, op: int, payload: bytes) -> Request:
        """protocol, section 2 and the first checks of each operation."""
        words = payload.split(b"\0")[:-1]
        if op == WRITE:
            if not words:
                raise Refused("EINVAL")
            return Request(op, self._path(by, words[0]), payload[len(words[0]) + 1 :])
        if op == DIRECTORY_PART:
            if len(words) != 2:
                raise Refused("EINVAL")
            return Request(op, self._path(by, words[0]), offset=atoi(words[1]))
        if op == SET_PERMS:
            if len(words) < 2:
                raise Refused("EINVAL")
            if by.bound and len(words) - 1 >= self.quotas["node-permissions"]:
                raise Refused("ENOSPC")
            acl = tuple(self._entry(word) for word in words[1:])
            if not acl[0].counts:
                raise Refused("ENOENT")
            return Request(op, self._path(by, words[0], special=True), acl=acl)
        if payload.count(b"\0") != 1 or payload[-1:] != b"\0":
            raise Refused("EINVAL")
        return Request(op, self._path(by, words[0], special=op == GET_PERMS))

    def _path(self, by: Connection, written: bytes, *, special: bool = False) -> bytes:
        path = written
        if written[:1] not in {b"/", b"@"}:
            path = by.home + b"/" + written
        fine = (
            re.fullmatch(rb"[A-Za-z0-9/_@-]+", written)
            and b"//" not in path
            and (path == b"/" or path[-1:] != b"/")
            and (special or path[:1] != b"@")
        )
        if not fine:
            raise Refused("EINVAL")
        return path

    def _entry(self, word: bytes) -> Entry:
        m = re.fullmatch(rb"([nrwb])\s*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)", word)
        if m is None:
            raise Refused("EINVAL")
        digits = m[3].lower()
        try:
            base = 16 if digits[:2] == b"0x" else 8 if digits[:1] == b"0" else 10
            domid = int(digits, base)
        except ValueError:
            raise Refused("EINVAL") from None
        domid = -domid if m[2] == b"-" else domid
        return Entry(m[1].decode(), domid, domid in self.domains or domid == ANYBODY)

    # ---- nodes

    def _on_node(self, by: Connection, tx_id: int, request: Request, reply: Message) -> tuple[bytes, list[Happening]]:
        if not tx_id or request.path[:1] == b"@":
            tree = self.tree.copy()
            answer, happened = tree.perform(by.who, request)
            self._becomes(tree)
            return answer, happened
        transaction = by.transactions[tx_id]
        outcome: Outcome = reply[1] if reply[0] != ERROR else reply[1][:-1].decode()
        if request.op == DIRECTORY_PART and isinstance(outcome, bytes):
            outcome = outcome.partition(b"\0")[2]
        asked = [*transaction.requests, request]
        possible = [again(tree, by.who, asked)[1][-1] for tree in self.history[transaction.began :]]
        assert outcome in possible or self._touched(transaction.began, request.path), (
            f"answered {outcome!r}, might have been {possible}"
        )
        transaction.log.append(Asked(request, outcome))
        if isinstance(outcome, str):
            raise Refused(outcome)
        return outcome, []

    def _touched(self, began: int, path: bytes) -> bool:
        """Whether the node, or one above or right below it, has changed since: then moments may be mixed in one answer.

        Nodes are isolated from their first access on, each from its own; the commit finds out.
        """
        for old, new in pairwise(self.history[began:]):
            changed = {p for p in old.nodes.keys() | new.nodes.keys() if old.nodes.get(p) != new.nodes.get(p)}
            if any(p == path or is_below(path, p) or parent_of(p) == path for p in changed):
                return True
        return False

    def _becomes(self, tree: Tree) -> None:
        if list(tree.nodes.items()) != list(self.tree.nodes.items()):
            self.history.append(tree)

    # ---- transactions

    def _end(self, by: Connection, tx_id: int, payload: bytes, reply: Message) -> tuple[bytes, list[Happening]]:
        if payload not in {b"T\0", b"F\0"}:
            raise Refused("EINVAL")
        if not tx_id:
            raise Refused("ENOENT")
        transaction = by.transactions.pop(tx_id)
        if payload == b"F\0":
            return OK, []
        after, outcomes = again(self.tree, by.who, transaction.requests)
        same = outcomes == [asked.outcome for asked in transaction.log]
        if reply == (ERROR, b"EAGAIN\0"):
            assert not same or self._lists_moved(by.who, transaction), "EAGAIN without a conflict"
            raise Refused("EAGAIN")
        assert same, f"committed, though now the answers would be {outcomes} to {transaction.log}"
        happened = told_at_commit(self.tree, by.who, transaction.requests)
        self._becomes(after)
        return OK, happened

    def _lists_moved(self, who: Who, transaction: Transaction) -> bool:
        """Whether a written node might have had another permission list inside the transaction."""
        now = left_behind(self.tree, who, transaction.requests)
        return any(left_behind(t, who, transaction.requests) != now for t in self.history[transaction.began :])

    # ---- watches and the rest

    def _other(self, number: int, by: Connection, op: int, tx_id: int, payload: bytes) -> tuple[bytes, list[Message]]:
        words = payload.split(b"\0")[:-1]
        mine = [w for w in self.watches if w.connection == number]
        if op == RESET_WATCHES:
            self.watches = [w for w in self.watches if w.connection != number]
            by.transactions.clear()
        elif op == START:
            if tx_id:
                raise Refused("EBUSY")
            if by.bound and len(by.transactions) + 1 >= self.quotas["transactions"]:
                raise Refused("ENOSPC")
            by.last_tx_id += 1
            by.transactions[by.last_tx_id] = Transaction(len(self.history) - 1)
            return b"%d\0" % by.last_tx_id, []
        elif op == UNWATCH:
            if len(words) != 2:
                raise Refused("EINVAL")
            path = self._path(by, words[0], special=True)
            found = [w for w in mine if (w.path, w.token) == (path, words[1])]
            if not found:
                raise Refused("ENOENT")
            self.watches.remove(found[0])
        else:
            depth = None
            if len(words) == 3:
                depth = atoi(words[2])
            if len(words) not in {2, 3} or (depth is not None and depth < 0):
                raise Refused("EINVAL")
            path = self._path(by, words[0], special=True)
            if any((w.path, w.token) == (path, words[1]) for w in mine):
                raise Refused("EEXIST")
            if by.bound and len(mine) + 1 >= self.quotas["watches"]:
                raise Refused("ENOSPC")
            self.watches.append(Watch(number, path, words[1], depth, len(path) - len(words[0])))
            return OK, [(EVENT, words[0] + b"\0" + words[1] + b"\0")]
        return OK, []

    def _events(self, happened: list[Happening]) -> dict[int, list[Message]]:
        heard: dict[int, list[Message]] = {}
        for path, exact, lists in happened:
            for watch in self.watches:
                who = self.connections[watch.connection].who
                near = path == watch.path or (
                    not exact
                    and is_below(path, watch.path)
                    and (watch.depth is None or levels(path) - levels(watch.path) <= watch.depth)
                )
                if near and any("r" in rights(acl, who) for acl in lists):
                    event = path[watch.cut :] + b"\0" + watch.token + b"\0"
                    heard.setdefault(watch.connection, []).append((EVENT, event))
        return heard


def atoi(text: bytes) -> int:
    """C's."""
    m = re.match(rb"[ \t\n\v\f\r]*([+-]?[0-9]+)", text)
    value = max(-(2**63), min(2**63 - 1, int(m[1]))) if m else 0
    return (value + 2**31) % 2**32 - 2**31
