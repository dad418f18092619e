"""Where Debian's 4.17 daemons legitimately differ from the reference model, which follows the newest C daemon.

`NOT_ASKED` are requests that are not sent to a daemon, since the store would be another one afterwards (or the daemon dead);
`FORGIVEN` are answers and events that may be others than the model's: then the example goes on with an empty store.
Every row says why; `make model` prints how often each was needed.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple

from tests.model.nodes import ANYBODY, DIRECTORY, DIRECTORY_PART, MKDIR, RM, SET_PERMS, Refused
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
    Reference,
    entry_of,
)

C, OCAML = "c", "ocaml"
CONTROL: Final = 0


class Case(NamedTuple):
    """A request."""

    op: int
    tx_id: int
    payload: bytes
    bound: bool
    """A guest's."""
    model: Reference
    """Before it."""

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


def refused(outcome: object) -> bool:
    """Whether an outcome (or all of several possible ones) is an error."""
    if isinstance(outcome, list):
        return all(isinstance(each, str) for each in outcome)
    return isinstance(outcome, str) or (isinstance(outcome, tuple) and outcome[0] == ERROR)


def same_set(got: object, wanted: object) -> bool:
    """Whether two lists differ only in how often something is in them."""
    return isinstance(got, list) and isinstance(wanted, list) and set(got) == set(wanted)


NOT_ASKED: Final = (
    NotAsked((C, OCAML), "4.17 has no such operation", lambda c: c.op == SET_QUOTA),
    NotAsked((C, OCAML), "4.17 has no watches with a depth", lambda c: c.op == WATCH and len(c.words) == 4),
    NotAsked(
        (C, OCAML), "4.17 does not tell which domain it was", lambda c: c.op == WATCH and b"Domain/" in c.words[0]
    ),
    NotAsked(
        (C, OCAML),
        "special nodes cannot be read in 4.17",
        lambda c: c.op not in {WATCH, UNWATCH} and c.payload[:1] == b"@",
    ),
    NotAsked((C, OCAML), "32757 is nobody in the lists of 4.17", lambda c: ANYBODY in named(c)),
    NotAsked(
        (OCAML,),
        "domains need not exist to be named in lists",
        lambda c: not named(c) <= c.model.exist | c.model.domains.keys(),
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
        "a target is not let go in 4.17 as long as another stands in for it",
        lambda c: c.op == SET_TARGET,
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
        lambda c, d: unterminated(c) and d.what == "reply" and d.wanted == (ERROR, b"EINVAL\0") and refused(d.got),
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
        "RELEASE is answered before its events",
        lambda c, d: c.op == RELEASE and (d.what == "place of the reply" or "events" in d.what),
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
        lambda c, d: c.op in {RM, MKDIR} and refused(d.wanted) and not refused(d.got),
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
        "errors have other names: what may not be known is not hidden, and other checks come first",
        lambda c, d: refused(d.wanted) and refused(d.got),
    ),
    Forgiven(
        (OCAML,),
        "a transaction that collides is repeated, and decided by rules of its own; ids of transactions skip numbers",
        lambda c, d: c.op in {START, END},
    ),
    Forgiven(
        (C,),
        "identical events, of a relative and an absolute watch, are sent once",
        lambda c, d: d.what.startswith("events") and same_set(d.got, d.wanted),
    ),
    Forgiven(
        (OCAML,),
        "who is told of a change, and of the end of a domain, is decided by rules of its own",
        lambda c, d: "events" in d.what,
    ),
    Forgiven((OCAML,), "the reply comes before events", lambda c, d: d.what == "place of the reply"),
    Forgiven((OCAML,), "guests may send CONTROL", lambda c, d: c.op == CONTROL and c.bound),
    Forgiven(
        (OCAML,),
        "children are listed in an order of its own",
        lambda c, d: c.op in {DIRECTORY, DIRECTORY_PART},
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
