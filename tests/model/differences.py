"""Where Debian's 4.17 daemons legitimately differ from the reference model, which follows the newest C daemon.

`NOT_ASKED` are requests that are not sent to a daemon, since the store would be another one afterwards (or the daemon dead);
`FORGIVEN` are answers and events that may be others than the model's: then the example goes on with an empty store.
Every row says why; `make model` prints how often each was needed.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

from tests.model.nodes import DIRECTORY, DIRECTORY_PART, MKDIR, RM, SET_PERMS
from tests.model.reference import (
    END,
    ERROR,
    GET_DOMAIN_PATH,
    RELEASE,
    RESET_WATCHES,
    SET_QUOTA,
    SET_TARGET,
    START,
    UNWATCH,
    WATCH,
    Disagreement,
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


def names_anybody_or_nobody(case: Case) -> bool:
    return case.op == SET_PERMS and any(word[1:] not in {b"0", b"5", b"6"} for word in case.words[1:-1])


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
        "special nodes cannot be read in 4.17, and 32757 and unknown domains mean something else in lists",
        lambda c: (c.op not in {WATCH, UNWATCH} and c.payload[:1] == b"@") or names_anybody_or_nobody(c),
    ),
    NotAsked((OCAML,), "RESET_WATCHES is not answered", lambda c: c.op == RESET_WATCHES),
    NotAsked((OCAML,), "a ring that was released is not served when it is introduced again", lambda c: c.op == RELEASE),
    NotAsked(
        (C,),
        "4.17 removes the root when the domain that owns it ends: every later request is EACCES",
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
        "a malformed path is refused with whatever error was met before (errno is left as it was)",
        lambda c, d: (
            d.what == "reply" and d.wanted == (ERROR, b"EINVAL\0") and isinstance(d.got, tuple) and d.got[0] == ERROR
        ),
    ),
    Forgiven(
        (C,),
        "a transaction is refused when somebody else has written a node that it touched, whatever was written",
        lambda c, d: c.op == END and d.what == "commit" and d.got == "EAGAIN",
    ),
    Forgiven(
        (C,),
        "RELEASE is answered before its events",
        lambda c, d: c.op == RELEASE and (d.what == "place of the reply" or "events" in d.what),
    ),
    Forgiven(
        (C,),
        "it dies of some malformed paths",
        lambda c, d: d.what == "silence" and "Closed" in str(d.got) and c.op == RM,
    ),
    Forgiven(
        (C,),
        "a payload without a closing NUL is not always answered on a ring",
        lambda c, d: d.what == "silence" and c.bound and c.payload[-1:] != b"\0",
    ),
    Forgiven(
        (C,), "domids are read by atoi", lambda c, d: c.op == GET_DOMAIN_PATH and d.wanted == (ERROR, b"EINVAL\0")
    ),
    Forgiven(
        (OCAML,),
        "RM of what is not there, and MKDIR of what is, are OK for everybody",
        lambda c, d: c.op in {RM, MKDIR} and "OK" in str(d.got),
    ),
    Forgiven(
        (OCAML,),
        "domains need not exist to be named as target or owner",
        lambda c, d: c.op in {SET_TARGET, SET_PERMS} and refused(d.wanted),
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
