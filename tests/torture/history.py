"""Histories: what clients did to one small group of nodes, when they asked and when they were answered.

An operation is one step, or, for a committed transaction, several that must have happened at one instant.  Times are those
of the client: asked before the first byte was sent, answered after the last byte was received, so that the true interval
lies within.  Knows the nodes of one group by their names, nothing of paths, connections or the daemon.
"""

from __future__ import annotations

from typing import Final, NamedTuple

NEVER: Final = float("inf")
"""The time of an answer that has not come: the operation may have happened, or not."""

READ: Final = "read"
WRITE: Final = "write"
REMOVE: Final = "remove"
LIST: Final = "list"


class Step(NamedTuple):
    """One request and what it was answered."""

    kind: str
    name: bytes = b""
    value: bytes | tuple[bytes, ...] | None = None
    """Of a write, what was written; of a read, what came back, None if there was no such node; of a list, the names."""


class Operation(NamedTuple):
    """What one client did at one instant between `asked` and `answered`."""

    client: int
    asked: float
    answered: float
    steps: tuple[Step, ...]

    @property
    def reads_only(self) -> bool:
        return all(step.kind in {READ, LIST} for step in self.steps)


State = tuple[tuple[bytes, bytes], ...]
"""Nodes of a group with their values, in order of creation."""


def performed(state: State, steps: tuple[Step, ...]) -> State | None:
    """The state after these steps; None if one of them would have been answered differently."""
    nodes = dict(state)
    for kind, name, value in steps:
        if kind == READ:
            if nodes.get(name) != value:
                return None
        elif kind == WRITE:
            assert isinstance(value, bytes)
            nodes[name] = value
        elif kind == REMOVE:
            nodes.pop(name, None)
        elif tuple(nodes) != value:
            return None
    return tuple(nodes.items())
