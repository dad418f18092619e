"""What was asked inside a transaction, and doing it again: all that the reference model needs to know of transactions.

Part of the reference model (see `tests.model.reference`).
"""

from typing import NamedTuple

from tests.model.nodes import MKDIR, SET_PERMS, WRITE, Acl, Happening, Refused, Request, Tree, Who, parent_of

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
        of = [(before, path), (tree, parent_of(path)), (tree, path)]
        there = tuple(t.acl(p) for t, p in of if p in t.nodes)
        told.append(Happening(path, False, (*lists, *there)))
    spoken_of = {each.path for each in told}
    return told + [Happening(path, True, lists) for path, lists in quiet.items() if path not in spoken_of]


class Transaction:
    """What was asked and answered in it.  What a quota refused is as if it had not been asked."""

    def __init__(self, began: int) -> None:
        self.began = began
        """Where in the history of trees."""
        self.log: list[Asked] = []
        self.loose = False
        """Whom its domain may stand in for has changed meanwhile: earlier answers say nothing about later ones."""
        self.gives_to_the_dead = False
        """It would write a permission list that names a domain which has ended since the list was given."""

    @property
    def requests(self) -> list[Request]:
        return [asked.request for asked in self.log]

    def domain_ends(self, domid: int) -> None:
        """A domain is no more; lists that name it are not given to whoever comes to have its domid."""
        lists = [
            request.acl for request, outcome in self.log if request.op == SET_PERMS and not isinstance(outcome, str)
        ]
        if any(entry.domid == domid and entry.counts for acl in lists for entry in acl):
            self.gives_to_the_dead = True
