"""Which operation has cases for what: success, each documented error, permissions, transactions, malformed payloads.

Read off the cases themselves, so that nothing can be claimed.  `python -m tests.conformance.completeness` prints the table.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator

from tests.conformance.notation import op_name, op_number
from tests.conformance.transcript import Case, is_guest, load

ERRORS: dict[str, str] = {
    "CONTROL": "EINVAL EACCES ENOENT",
    "DIRECTORY": "EINVAL ENOENT EACCES E2BIG ENOSPC",
    "READ": "EINVAL ENOENT EACCES ENOMEM ENOSPC",
    "GET_PERMS": "EINVAL ENOENT EACCES ENOSPC",
    "WATCH": "EINVAL EEXIST ENOSPC ENOMEM",
    "UNWATCH": "EINVAL ENOENT",
    "TRANSACTION_START": "EBUSY ENOENT ENOSPC",
    "TRANSACTION_END": "EINVAL ENOENT EAGAIN ENOMEM ENOSPC",
    "INTRODUCE": "EINVAL EACCES ENOENT",
    "RELEASE": "EINVAL EACCES ENOENT",
    "GET_DOMAIN_PATH": "EINVAL ENOENT",
    "WRITE": "EINVAL EACCES ENOENT ENOSPC EIO",
    "MKDIR": "EINVAL EACCES ENOENT ENOSPC EIO",
    "RM": "EINVAL EACCES ENOENT ENOSPC",
    "SET_PERMS": "EINVAL EACCES ENOENT EPERM ENOSPC",
    "WATCH_EVENT": "ENOSYS",
    "ERROR": "ENOSYS",
    "IS_DOMAIN_INTRODUCED": "EINVAL EACCES ENOENT",
    "RESUME": "EINVAL EACCES ENOENT",
    "SET_TARGET": "EINVAL EACCES ENOENT",
    "RESTRICT": "ENOSYS",
    "RESET_WATCHES": "ENOENT",
    "DIRECTORY_PART": "EINVAL EACCES ENOENT ENOSPC",
    "GET_FEATURE": "EINVAL EACCES ENOENT",
    "SET_FEATURE": "EINVAL EACCES ENOENT EBUSY",
    "GET_QUOTA": "EINVAL EACCES ENOENT",
    "SET_QUOTA": "EINVAL EACCES ENOENT",
}
"""Errors of each operation of xs_wire.h.  ENOENT is also what an unknown transaction gives; for WRITE and MKDIR only that.

ENOSPC of operations that only read: a transaction has touched too many nodes.
"""
FOR_GUESTS = {
    *("DIRECTORY", "READ", "GET_PERMS", "WATCH", "UNWATCH", "TRANSACTION_START", "TRANSACTION_END", "GET_DOMAIN_PATH"),
    *("WRITE", "MKDIR", "RM", "SET_PERMS", "RESET_WATCHES", "DIRECTORY_PART", "GET_FEATURE"),
}
"""What a guest may ask, and have."""
NESTED = {"TRANSACTION_START"}
"""They are refused in a transaction."""
FREE_FORM = {"TRANSACTION_START", "RESET_WATCHES"}
"""They take any payload, so none is malformed."""

Seen = dict[str, set[str]]
"""By operation: kinds and errors that some step shows."""


def wanted(operation: str) -> list[str]:
    """The kinds that an operation must have cases for."""
    errors = ERRORS[operation].split()
    if errors == ["ENOSYS"]:
        return ["ENOSYS", "from a guest", "from domain 0", "any payload"]
    kinds = ["success", *errors, "from a guest", "from domain 0", "in a transaction", "unknown transaction"]
    kinds += ["success in a transaction"] if operation not in NESTED else []
    kinds += ["success for a guest"] if operation in FOR_GUESTS else []
    return [*kinds, "any payload" if operation in FREE_FORM else "malformed"]


def seen(cases: Iterable[Case]) -> Seen:
    """What the cases show of each operation, in what they state first."""
    found: Seen = defaultdict(set)
    payloads: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        for operation, actor, tx, message, payload in _requests(case):
            kinds = found[operation]
            payloads[operation].add(payload)
            success = message == "OK" or message.startswith("=")
            kinds.add("success" if success else message.partition(" ")[0])
            if success and is_guest(actor):
                kinds.add("success for a guest")
            if success and tx and not tx[0].isdigit():
                kinds.add("success in a transaction")
            kinds.add("from a guest" if is_guest(actor) else "from domain 0")
            if tx and not tx[0].isdigit():
                kinds.add("in a transaction")
            elif tx:
                kinds.add("unknown transaction")
            if message == "EINVAL":
                kinds.add("malformed")
    for operation, given in payloads.items():
        if len(given) >= 5:
            found[operation].add("any payload")
    return found


def _requests(case: Case) -> Iterator[tuple[str, str, str, str, str]]:
    """Operation, actor, transaction, outcome and payload of every request in the case."""
    for step in case.steps:
        messages = [message for message in step.want.get(step.actor, ()) if not message.startswith("event ")]
        if step.is_request and messages:
            yield op_name(op_number(step.verb)), step.actor, step.tx, messages[0], step.argument
        elif step.verb == "repeat":
            _, operation, *payload = step.argument.split(" ", 2)
            for message in messages:
                count, times, outcome = message.partition(" x ")
                if times and count.isdigit():
                    yield op_name(op_number(operation)), step.actor, step.tx, outcome, "".join(payload)


def missing(cases: Iterable[Case]) -> list[str]:
    """What no case shows, as `OPERATION: kind`."""
    found = seen(cases)
    return [
        f"{operation}: {kind}" for operation in ERRORS for kind in wanted(operation) if kind not in found[operation]
    ]


def table(cases: list[Case]) -> str:
    """Operations and how often what was seen, for people."""
    found = seen(cases)
    lines = []
    for operation in ERRORS:
        kinds = ", ".join(kind if kind in found[operation] else f"MISSING {kind}" for kind in wanted(operation))
        lines.append(f"{operation:22}{kinds}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(load()))
    sys.exit(1 if missing(load()) else 0)
