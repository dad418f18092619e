"""Where Debian's 4.17 daemons legitimately differ from the reference model, which follows the newest C daemon.

`NOT_ASKED` are requests that are not sent to a daemon, since the store would be another one afterwards (or the daemon dead);
`FORGIVEN` are answers and events that may be others than the model's: then the example goes on with an empty store.
Every row says why; `make model` prints how often each was needed.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple, cast

from tests.model.harness import DOMAIN_ENDS
from tests.model.nodes import ANYBODY, DIRECTORY, MKDIR, OK, ON_NODES, RM, SET_PERMS, Refused
from tests.model.reference import (
    END,
    ERROR,
    GET_DOMAIN_PATH,
    INTRODUCE,
    RELEASE,
    SET_QUOTA,
    SET_TARGET,
    START,
    UNWATCH,
    WATCH,
    Disagreement,
    Message,
    Reference,
    entry_of,
)
from tests.model.transactions import Transaction

C, OCAML = "c", "ocaml"
CONTROL: Final = 0


class Case(NamedTuple):
    """A request."""

    op: int
    tx_id: int
    payload: bytes
    model: Reference
    """Before it."""
    transaction: Transaction | None = None

    @property
    def words(self) -> list[bytes]:
        return self.payload.split(b"\0")


class NotAsked(NamedTuple):
    """A kind of request that is not sent."""

    daemons: tuple[str, ...]
    why: str
    applies: Callable[[Case], bool]


class Forgiven(NamedTuple):
    """A kind of disagreement that is none."""

    daemons: tuple[str, ...]
    why: str
    applies: Callable[[Case, Disagreement], bool]


def named(case: Case) -> set[int]:
    """The domids in a permission list."""
    domids = set()
    for word in case.words[1:-1] if case.op == SET_PERMS else []:
        with suppress(Refused):
            domids.add(entry_of(word).domid)
    return domids


def unterminated(case: Case) -> bool:
    """Whether a payload is not just one string."""
    return case.payload.count(b"\0") != 1 or case.payload[-1:] != b"\0"


def introduced_again(case: Case) -> bool:
    known = {b"%d" % domid for domid, domain in case.model.domains.items() if domain.introduced}
    return case.op == INTRODUCE and case.words[0] in known


def repeats_while_others_write(case: Case) -> bool:
    """Whether a commit has an RM or MKDIR, which may have had nothing to do, and the tree has changed since it began."""
    transaction = case.transaction
    if case.op != END or transaction is None or transaction.began == len(case.model.history) - 1:
        return False
    return any(request.op in {RM, MKDIR} for request in transaction.requests)


def stands_in(case: Case) -> bool:
    """Whether any domain has a target."""
    return any(domain.target is not None for domain in case.model.domains.values())


def errors(outcome: object) -> set[str]:
    """The name of the error in a reply or an answer; the names in a list of possible answers."""
    if isinstance(outcome, list):
        return {each for each in outcome if isinstance(each, str)}
    if isinstance(outcome, tuple) and outcome[0] == ERROR:
        return {outcome[1][:-1].decode()}
    return {outcome} if isinstance(outcome, str) else set()


def same_names(got: object, wanted: object) -> bool:
    """Whether a reply or an answer has the names of the wanted one (or of a possible one) in whatever order."""
    possible = wanted if isinstance(wanted, list) else [wanted]
    return not errors(got) and names_in(got) in [names_in(each) for each in possible]


def names_in(outcome: object) -> list[bytes]:
    content = outcome[1] if isinstance(outcome, tuple) else outcome
    return sorted(content.split(b"\0")) if isinstance(content, bytes) else []


def same_set(got: object, wanted: object) -> bool:
    """Whether two lists differ only in how often something is in them."""
    return isinstance(got, list) and isinstance(wanted, list) and set(got) == set(wanted)


def has_all(got: object, wanted: object) -> bool:
    """Whether a list has everything that another has, and more."""
    return isinstance(got, list) and isinstance(wanted, list) and Counter(got) > Counter(wanted)


def about_nodes(events: object, *, special: bool) -> list[Message]:
    """Those of special nodes, or of all others."""
    wanted = cast(list[Message], events) if isinstance(events, list) else []
    return [(kind, content) for kind, content in wanted if (content[:1] == b"@") == special]


NOT_ASKED: Final = (
    NotAsked((C, OCAML), "4.17 has no such operation", lambda c: c.op == SET_QUOTA),
    NotAsked((C, OCAML), "4.17 has no watches with a depth", lambda c: c.op == WATCH and len(c.words) == 4),
    NotAsked(
        (C, OCAML), "4.17 does not tell which domain it was", lambda c: c.op == WATCH and b"Domain/" in c.words[0]
    ),
    NotAsked(
        (C, OCAML),
        "special nodes cannot be read in 4.17",
        lambda c: c.op in ON_NODES and c.payload[:1] == b"@",
    ),
    NotAsked((C, OCAML), "32757 is nobody in the lists of 4.17", lambda c: ANYBODY in named(c)),
    NotAsked(
        (OCAML,),
        "domains need not exist to be named in lists",
        lambda c: not named(c) <= c.model.exist | c.model.domains.keys(),
    ),
    NotAsked(
        (OCAML,),
        "RM of what is not there, and MKDIR of what is, are sometimes repeated at commit, and sometimes not",
        repeats_while_others_write,
    ),
    NotAsked((OCAML,), "what has no payload is answered when something follows", lambda c: not c.payload),
    NotAsked(
        (OCAML,),
        "a ring that is introduced again is served only if its event channel gets the same number",
        introduced_again,
    ),
    NotAsked((OCAML,), "a ring that was released is not served when it is introduced again", lambda c: c.op == RELEASE),
    NotAsked(
        (C, OCAML),
        "4.17 loses the root when the domain that owns it ends",
        lambda c: c.op == SET_PERMS and c.payload[:2] == b"/\0" and c.words[1][1:] != b"0",
    ),
    NotAsked(
        (C,),
        "whatever has been a target once is not let go in 4.17",
        lambda c: c.op in {RELEASE, DOMAIN_ENDS} and stands_in(c),
    ),
)

FORGIVEN: Final[tuple[Forgiven, ...]] = (
    Forgiven(
        (C,),
        "4.17 looks for the transaction of every operation, the newest not of WATCH and UNWATCH",
        lambda c, d: c.op in {WATCH, UNWATCH} and c.tx_id > 0 and d.got == (ERROR, b"ENOENT\0"),
    ),
    Forgiven(
        (C,),
        "what cannot be taken apart is refused with whatever error was met before (errno is left as it was)",
        lambda c, d: (
            unterminated(c) and d.what == "reply" and d.wanted == (ERROR, b"EINVAL\0") and errors(d.got) != set()
        ),
    ),
    Forgiven(
        (C,),
        "a transaction is refused when somebody else has written a node that it touched, whatever was written",
        lambda c, d: d.what == "commit" and d.got == (ERROR, b"EAGAIN\0"),
    ),
    Forgiven(
        (C,),
        "a commit that would give a node to a domain that has ended is ENOMEM",
        lambda c, d: d.what == "commit" and d.got == (ERROR, b"ENOMEM\0"),
    ),
    Forgiven(
        (C,),
        "in a transaction a node cannot be removed whose copy lists a child that has gone meanwhile",
        lambda c, d: c.op == RM and c.tx_id > 0 and d.got == "EIO",
    ),
    Forgiven(
        (C,),
        "RELEASE is answered before its events",
        lambda c, d: c.op == RELEASE and d.what == "place of the reply",
    ),
    Forgiven(
        (C,),
        "it dies of what cannot be taken apart, when no error was met before, or when it looks for the parent of that",
        lambda c, d: unterminated(c) and d.what == "silence",
    ),
    Forgiven(
        (C, OCAML),
        "what is no number counts as one: C reads domids by atoi, OCaml skips what is no digit",
        lambda c, d: c.op == GET_DOMAIN_PATH and d.wanted == (ERROR, b"EINVAL\0"),
    ),
    Forgiven(
        (OCAML,),
        "RM of what is not there, and MKDIR of what is, are OK for everybody",
        lambda c, d: c.op in {RM, MKDIR} and d.got in (OK, (c.op, OK)) and errors(d.wanted) != set(),
    ),
    Forgiven(
        (OCAML,),
        "domains need not exist to be named as target",
        lambda c, d: c.op == SET_TARGET and d.wanted == (ERROR, b"ENOENT\0"),
    ),
    Forgiven(
        (OCAML,),
        "an unknown transaction's id is not given back",
        lambda c, d: c.tx_id > 0 and d.what == "ids of a message",
    ),
    Forgiven(
        (OCAML,),
        "errors are others: what may not be known is ENOENT, an unknown transaction EIO, and checks have another order",
        lambda c, d: errors(d.got) != set() and errors(d.wanted) != set(),
    ),
    Forgiven(
        (OCAML,),
        "a transaction that collides is repeated, and decided by rules of its own",
        lambda c, d: d.what == "commit",
    ),
    Forgiven(
        (OCAML,),
        "what follows T or F is not looked at",
        lambda c, d: d.got == (END, OK) and d.what == "reply" and c.words[0] in {b"T", b"F"},
    ),
    Forgiven(
        (OCAML,),
        "ids of transactions skip numbers",
        lambda c, d: c.op == START and d.what == "reply" and not errors(d.got),
    ),
    Forgiven(
        (C,),
        "identical events, of a relative and an absolute watch, are sent once",
        lambda c, d: d.what.startswith("events") and same_set(d.got, d.wanted),
    ),
    Forgiven(
        (C,),
        "what a transaction wrote and then removed with a node above it is told to all watchers, not to exact ones alone",
        lambda c, d: c.op == END and d.what.startswith("events") and has_all(d.got, d.wanted),
    ),
    Forgiven(
        (C,),
        "of what a transaction removed only those are told who could read it, not who may read the node above it",
        lambda c, d: c.op == END and d.what.startswith("events of a guest") and has_all(d.wanted, d.got),
    ),
    Forgiven(
        (C,),
        "of domains that come and go nobody is told who may read the root alone",
        lambda c, d: d.what.startswith("events of") and d.got == about_nodes(d.wanted, special=False),
    ),
    Forgiven(
        (OCAML,),
        "a domain has the rights of all entries that name it or its target",
        lambda c, d: stands_in(c) and ("EACCES" in errors(d.wanted) or has_all(d.got, d.wanted)) and not errors(d.got),
    ),
    Forgiven(
        (OCAML,),
        "of the nodes that end with a domain nobody is told",
        lambda c, d: c.op == DOMAIN_ENDS and same_set(d.got, about_nodes(d.wanted, special=True)),
    ),
    Forgiven(
        (OCAML,),
        "of a change of the root nobody is told",
        lambda c, d: c.words[0] == b"/" and d.what.startswith("events") and d.got == [],
    ),
    Forgiven(
        (OCAML,),
        "who watches below a removed node is told in any case",
        lambda c, d: c.op == RM and d.what.startswith("events") and has_all(d.got, d.wanted),
    ),
    Forgiven(
        (OCAML,),
        "who is told of another permission list, and of a commit, is decided by rules of its own",
        lambda c, d: c.op in {SET_PERMS, END} and d.what.startswith("events"),
    ),
    Forgiven((OCAML,), "watchers are told in another order", lambda c, d: d.what.startswith("order of events")),
    Forgiven((OCAML,), "the reply comes before events", lambda c, d: d.what == "place of the reply"),
    Forgiven((OCAML,), "guests may send CONTROL", lambda c, d: d.got == (CONTROL, OK)),
    Forgiven(
        (OCAML,),
        "children are listed in an order of its own",
        lambda c, d: c.op == DIRECTORY and same_names(d.got, d.wanted),
    ),
)

USED: Counter[str] = Counter()
"""How often each row was needed, by daemon and reason."""


def is_asked(daemon: str, case: Case) -> bool:
    """Whether a request is sent to a daemon."""
    for row in NOT_ASKED:
        if daemon in row.daemons and row.applies(case):
            USED[f"{daemon}: {row.why}"] += 1
            return False
    return True


def is_forgiven(daemon: str, case: Case, disagreement: Disagreement) -> bool:
    """Whether a daemon may differ like this."""
    for row in FORGIVEN:
        if daemon in row.daemons and row.applies(case, disagreement):
            USED[f"{daemon}: {row.why}"] += 1
            return True
    return False
