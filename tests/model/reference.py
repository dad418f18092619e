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
from collections.abc import Mapping
from itertools import pairwise
from typing import Final, NamedTuple

from tests.model.nodes import (
    ANYBODY,
    DIRECTORY_PART,
    GET_PERMS,
    OK,
    ON_NODES,
    SET_PERMS,
    WRITE,
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
from tests.model.transactions import Asked, Outcome, Transaction, again, left_behind, told_at_commit

WATCH, UNWATCH, START, END, GET_DOMAIN_PATH, EVENT, ERROR, RESET_WATCHES, GET_FEATURE = 4, 5, 6, 7, 10, 15, 16, 21, 23
INTRODUCE, RELEASE, IS_INTRODUCED, SET_TARGET, SET_QUOTA = 8, 9, 17, 19, 26
PRIVILEGED_OPS: Final = frozenset({0, INTRODUCE, RELEASE, IS_INTRODUCED, 18, SET_TARGET, 24, 25, SET_QUOTA})
ON_DOMAINS: Final = frozenset({INTRODUCE, RELEASE, IS_INTRODUCED, SET_TARGET, SET_QUOTA, GET_DOMAIN_PATH})
OTHER_OPS: Final = frozenset({WATCH, UNWATCH, START, END, GET_DOMAIN_PATH, RESET_WATCHES, GET_FEATURE})
KNOWN: Final = ON_NODES | PRIVILEGED_OPS | OTHER_OPS


class Watch(NamedTuple):
    """One registered watch."""

    connection: int
    path: bytes
    token: bytes
    depth: int | None
    cut: int
    """Bytes that its events' paths lack at the front."""


class Domain:
    """One that is known: it was introduced, or something was said of it."""

    def __init__(self, quotas: Mapping[str, int]) -> None:
        self.quotas = dict(quotas)
        self.target: int | None = None
        self.introduced = False


class Connection:
    """A peer."""

    def __init__(self, domid: int, *, socket: bool) -> None:
        self.domid = domid
        self.privileged = domid == 0
        self.bound = domid != 0 and not socket
        """Quotas apply."""
        self.home = b"/local/domain/%d" % domid
        self.transactions: dict[int, Transaction] = {}
        self.last_tx_id = 0


Message = tuple[int, bytes]
"""Type and payload."""


class Disagreement(AssertionError):
    """The store under test does something else."""

    def __init__(self, what: str, got: object, wanted: object) -> None:
        super().__init__(f"{what}: {got}, should be {wanted}")
        self.what = what
        self.got = got
        self.wanted = wanted


class Reference:
    """The whole store."""

    def __init__(self, quotas: Mapping[str, int], known: frozenset[int] = KNOWN) -> None:
        """Quotas (nodes, watches, transactions, node-permissions) are what new domains get; a number reached is too much."""
        mine = (Entry("n", 0),)
        nodes = dict.fromkeys((b"/", b"/tool", b"/tool/xenstored", b"@introduceDomain"), Node(b"", mine))
        nodes[b"@releaseDomain"] = Node(b"", (*mine, Entry("r", ANYBODY)))
        self.history = [Tree(nodes)]
        """The tree after each change; the last one is the present."""
        self.watches: list[Watch] = []
        self.connections: dict[int, Connection] = {}
        self.last_number = 0
        self.exist: set[int] = set()
        """Domains that the hypervisor has."""
        self.domains: dict[int, Domain] = {}
        self.quotas = quotas
        self.known = known
        self._domain(0).introduced = True

    @property
    def tree(self) -> Tree:
        """The present."""
        return self.history[-1]

    def who(self, by: Connection) -> Who:
        """On whose behalf a connection acts."""
        domain = self.domains[by.domid]
        limit = domain.quotas["nodes"]
        full = by.bound and self.tree.owned(by.domid) + 1 >= limit
        return Who(by.domid, by.privileged, domain.target, full)

    def connect(self, domid: int, *, socket: bool) -> int:
        """A new connection's number; they are not used again."""
        self.last_number += 1
        self.connections[self.last_number] = Connection(domid, socket=socket)
        return self.last_number

    def disconnect(self, number: int) -> None:
        del self.connections[number]
        self.watches = [w for w in self.watches if w.connection != number]

    def ring(self, domid: int) -> int | None:
        """The number of a domain's connection, if it has one."""
        return next((n for n, by in self.connections.items() if by.bound and by.domid == domid), None)

    def _domain(self, domid: int) -> Domain:
        return self.domains.setdefault(domid, Domain(self.quotas))

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
            if op not in self.known:
                raise Refused("ENOSYS")
            if op in PRIVILEGED_OPS and not by.privileged:
                raise Refused("EACCES")
            if tx_id and op not in {WATCH, UNWATCH} and tx_id not in by.transactions:
                raise Refused("ENOENT")
            if op in ON_NODES:
                answer, happened = self._on_node(by, tx_id, self._parse(by, op, payload), reply)
                events = self.events(happened)
            elif op == END:
                answer, happened = self._end(by, tx_id, payload, reply)
                events, loose = self.events(happened), True
            elif op in {WATCH, UNWATCH, START, RESET_WATCHES}:
                answer, late = self._other(number, by, op, tx_id, payload)
            elif op in ON_DOMAINS:
                answer, happened = self._on_domain(op, payload)
                events = self.events(happened)
                self.forget_targets()
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
        if reply != expected:
            raise Disagreement("reply", reply, expected)
        for other in self.connections:
            heard = [message for message in said.get(other, []) if message[0] == EVENT]
            wanted = events.get(other, []) + (late if other == number else [])
            if Counter(heard) != Counter(wanted):
                whose = "a guest" if self.connections[other].bound else "a socket"
                raise Disagreement(f"events of {whose}, {other}", heard, wanted)
            if heard != wanted and not loose:
                raise Disagreement(f"order of events of {other}", heard, wanted)
        kinds = [message[0] for message in said[number]]
        behind_events = [*[EVENT] * (len(kinds) - 1 - len(late)), replies[0][0], *[EVENT] * len(late)]
        if kinds != behind_events:
            raise Disagreement("place of the reply", kinds, behind_events)

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
            if by.bound and len(words) - 1 >= self.domains[by.domid].quotas["node-permissions"]:
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
        letter, domid, _ = entry_of(word)
        if domid in self.exist:
            self._domain(domid)
        return Entry(letter, domid, domid in self.domains or domid == ANYBODY)

    # ---- nodes

    def _on_node(self, by: Connection, tx_id: int, request: Request, reply: Message) -> tuple[bytes, list[Happening]]:
        if not tx_id or request.path[:1] == b"@":
            tree = self.tree.copy()
            answer, happened = tree.perform(self.who(by), request)
            self._becomes(tree)
            return answer, happened
        transaction = by.transactions[tx_id]
        outcome: Outcome = reply[1] if reply[0] != ERROR else reply[1][:-1].decode()
        if request.op == DIRECTORY_PART and isinstance(outcome, bytes):
            outcome = outcome.partition(b"\0")[2]
        possible = [self._inside(by, tree, transaction, request) for tree in self.history[transaction.began :]]
        if not (outcome in possible or transaction.loose or self._touched(transaction.began, request.path)):
            raise Disagreement("answer in a transaction", outcome, possible)
        if outcome != "ENOSPC":
            transaction.log.append(Asked(request, outcome))
        if isinstance(outcome, str):
            raise Refused(outcome)
        return outcome, []

    def _inside(self, by: Connection, tree: Tree, transaction: Transaction, request: Request) -> Outcome:
        """The answer inside a transaction, had all of it been done on this tree.  Only what is live counts for quotas."""
        who = self.who(by)
        after, _ = again(tree, who._replace(full=False), transaction.requests)
        return again(after, who, [request])[1][0]

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
        who = self.who(by)._replace(full=False)
        after, outcomes = again(self.tree, who, transaction.requests)
        same = outcomes == [asked.outcome for asked in transaction.log] and not transaction.gives_to_the_dead
        mine, before = after.owned(by.domid), self.tree.owned(by.domid)
        too_many = by.bound and mine >= max(before, self.domains[by.domid].quotas["nodes"])
        if too_many and (reply == (ERROR, b"ENOSPC\0") or mine > before):
            raise Refused("ENOSPC")
        if reply == (ERROR, b"EAGAIN\0"):
            moved = transaction.loose or self._lists_moved(who, transaction)
            if same and not moved:
                raise Disagreement("commit", reply, "OK: there is no conflict")
            raise Refused("EAGAIN")
        if not same:
            raise Disagreement("commit", reply, f"EAGAIN: {transaction.log} are {outcomes} now")
        happened = told_at_commit(self.tree, who, transaction.requests)
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
            if by.bound and len(by.transactions) + 1 >= self.domains[by.domid].quotas["transactions"]:
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
            if by.bound and len(mine) + 1 >= self.domains[by.domid].quotas["watches"]:
                raise Refused("ENOSPC")
            self.watches.append(Watch(number, path, words[1], depth, len(path) - len(words[0])))
            return OK, [(EVENT, words[0] + b"\0" + words[1] + b"\0")]
        return OK, []

    # ---- domains

    def _on_domain(self, op: int, payload: bytes) -> tuple[bytes, list[Happening]]:
        words = payload.split(b"\0")[:-1]
        least, most = {INTRODUCE: (3, 99), SET_TARGET: (2, 99), SET_QUOTA: (3, 3)}.get(op, (1, 1))
        if not least <= len(words) <= most or (most == 1 and payload[-1:] != b"\0"):
            raise Refused("EINVAL")
        domid = domid_of(words[0])
        domain = self.domains.get(domid)
        if op == GET_DOMAIN_PATH:
            return b"/local/domain/%d\0" % domid, []
        if op == IS_INTRODUCED:
            return b"T\0" if domain is not None and domain.introduced else b"F\0", []
        if op == INTRODUCE:
            if not atoi(words[2]) or domid not in self.exist:
                raise Refused("EINVAL")
            return OK, self._introduce(domid)
        if op == SET_QUOTA:
            if domid not in self.exist and domid not in self.domains:
                raise Refused("ENOENT")
            name = words[1].decode()
            if name not in self.quotas:
                raise Refused("EINVAL")
            self._domain(domid).quotas[name] = atoi(words[2])
            return OK, []
        if op == SET_TARGET:
            target = domid_of(words[1])
            if not all(each in self.domains and self.domains[each].introduced for each in (domid, target)):
                raise Refused("ENOENT")
            self._set_target(domid, target)
            return OK, []
        if domid == 0:
            raise Refused("EINVAL")
        if domain is None or not domain.introduced:
            raise Refused("ENOENT")
        return OK, self.end_of(domid)

    def _introduce(self, domid: int) -> list[Happening]:
        """A fresh connection for a domain's ring; only the first introduction is told."""
        domain, old = self._domain(domid), self.ring(domid)
        number = self.connect(domid, socket=False)
        if old is not None:
            self.connections[number].last_tx_id = self.connections[old].last_tx_id
            self.disconnect(old)
        first, domain.introduced = not domain.introduced, True
        return self._about_domains(b"@introduceDomain", domid) if first else []

    def _set_target(self, domid: int, target: int | None) -> None:
        self.domains[domid].target = target
        for by in self.connections.values():
            for transaction in by.transactions.values():
                transaction.loose = transaction.loose or by.domid == domid

    def end_of(self, domid: int) -> list[Happening]:
        """A domain that is known was released, or is no more: it leaves nothing behind, and who watches is told."""
        introduced = self.domains[domid].introduced
        ring = self.ring(domid)
        if ring is not None:
            self.disconnect(ring)
        for by in self.connections.values():
            for transaction in by.transactions.values():
                transaction.domain_ends(domid)
        tree = self.tree.copy()
        happened = tree.forget(domid)
        self._becomes(tree)
        del self.domains[domid]
        return happened + (self._about_domains(b"@releaseDomain", domid) if introduced else [])

    def forget_targets(self) -> None:
        """Of domains that have ended; who stood in for one was still told of its nodes."""
        for domid, domain in self.domains.items():
            if domain.target is not None and domain.target not in self.domains:
                self._set_target(domid, None)

    def _about_domains(self, name: bytes, domid: int) -> list[Happening]:
        lists = (self.tree.acl(name), self.tree.acl(b"/"))
        return [Happening(name, False, lists), Happening(b"%s/%d" % (name, domid), False, lists)]

    # ---- what watchers hear

    def events(self, happened: list[Happening]) -> dict[int, list[Message]]:
        heard: dict[int, list[Message]] = {}
        for path, exact, lists in happened:
            for watch in self.watches:
                who = self.who(self.connections[watch.connection])
                near = (
                    concerns(watch, path)
                    if path[:1] == b"@"
                    else (
                        path == watch.path
                        or (
                            not exact
                            and is_below(path, watch.path)
                            and (watch.depth is None or levels(path) - levels(watch.path) <= watch.depth)
                        )
                    )
                )
                if near and any("r" in rights(acl, who) for acl in lists):
                    event = path[watch.cut :] + b"\0" + watch.token + b"\0"
                    heard.setdefault(watch.connection, []).append((EVENT, event))
        return heard


def concerns(watch: Watch, path: bytes) -> bool:
    """Whether a special node's event is for a watch.

    `@x` is told to who watches `@x` without a depth; which domain it was, as `@x/N`, to who watches just that, or `@x`
    with a depth of at least 1.  (SET_PERMS on `@x` itself is told to all its watches: the model's users set no depth there.)
    """
    if path == watch.path:
        return watch.depth is None or b"/" in path
    return path.rpartition(b"/")[0] == watch.path and bool(watch.depth)


def entry_of(word: bytes) -> Entry:
    """A letter and strtol of the rest, to whatever base."""
    m = re.fullmatch(rb"([nrwb])\s*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)", word)
    if m is None:
        raise Refused("EINVAL")
    digits = m[3].lower()
    try:
        base = 16 if digits[:2] == b"0x" else 8 if digits[:1] == b"0" else 10
        domid = int(digits, base)
    except ValueError:
        raise Refused("EINVAL") from None
    return Entry(m[1].decode(), -domid if m[2] == b"-" else domid)


def domid_of(word: bytes) -> int:
    """strtoul of a whole word, at most 65535."""
    m = re.fullmatch(rb"[ \t\n\v\f\r]*([+-]?)([0-9]+)", word)
    if m is None and word:
        raise Refused("EINVAL")
    value = min(int(m[2]), 2**64 - 1) if m else 0
    value = -value % 2**64 if m and m[1] == b"-" else value
    if value > 65535:
        raise Refused("EINVAL")
    return value


def atoi(text: bytes) -> int:
    """C's."""
    m = re.match(rb"[ \t\n\v\f\r]*([+-]?[0-9]+)", text)
    value = max(-(2**63), min(2**63 - 1, int(m[1]))) if m else 0
    return (value + 2**31) % 2**32 - 2**31
