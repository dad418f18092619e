"""What is done when Logic's tree is not State's: both are written down, for somebody to compare.

One line a node: path, generation, permission list, value, in the order of a walk; `diff` shows where they part.  Logic's was
written a little later: what differs there with a generation that State has not reached is no fault.
"""

import logging
import os
from typing import Final, NoReturn

from xenstore_state.tree import Node, Parts, Tree

log = logging.getLogger(__name__)

STATES: Final = "diverged-state"
LOGICS: Final = "diverged-logic"
"""Names of the files, in the run directory.  The next divergence replaces them."""


def dump(tree: Tree, path: str) -> None:
    """Writes a tree to a file.  Raises OSError."""
    fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "w", encoding="ascii") as f:
        stack: list[tuple[Parts, Node]] = [((), tree.root)]
        while stack:
            parts, node = stack.pop()
            name = ascii(b"/" + b"/".join(parts))[2:-1]
            acl = ",".join(f"{access}:{domid}" for access, domid in node.acl)
            f.write(f"{name} {node.generation} {acl} {ascii(node.value)[2:-1]}\n")
            if node.children:
                stack += [((*parts, below), child) for below, child in reversed(node.children.items())]
    os.replace(path + ".new", path)


def dump_aside(tree: Tree, path: str) -> None:
    """The same by a process of its own, for which nobody waits and which leaves no zombie."""
    child = os.fork()
    if not child:
        _dump_in_child(tree, path)
    os.waitpid(child, 0)


def _dump_in_child(tree: Tree, path: str) -> NoReturn:
    """Leaves it to a child of its own, and ends at once."""
    try:
        if not os.fork():
            dump(tree, path)
    except OSError as e:
        log.error("%s: %s", path, e.strerror)
    finally:
        os._exit(0)
