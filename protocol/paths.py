"""What a path is: its alphabet, its absolute form, its length (core.c: valid_chars, canonicalize).

Paths are bytes.  Absolute ones begin with `/`; relative ones lie below `/local/domain/<domid>/` of the caller; names
that begin with `@` are special nodes, outside the tree.
"""

import re
from typing import Final

from protocol.errors import EINVAL

_ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@"
# Five characters that scanf's %5u takes: a sign is one of them.
_DOMAIN_HOME: Final = re.compile(rb"/local/domain/(?:[0-9]{1,5}|-[0-9]{1,4})/")


def domain_path(domid: int) -> bytes:
    """Home of a domain: `/local/domain/N`."""
    return b"/local/domain/%d" % domid


def is_special(path: bytes) -> bool:
    """Whether the (valid) path names a special node."""
    return path[:1] == b"@"


def check_path(path: bytes) -> None:
    """Raises EINVAL unless `path` is absolute or special and well formed: its alphabet, no empty component, no `/` at the end."""
    if (
        path[:1] not in {b"/", b"@"}
        or path.translate(None, _ALPHABET)
        or b"//" in path
        or (path[-1:] == b"/" and path != b"/")
    ):
        raise EINVAL


def canonical(path: bytes, home: bytes) -> bytes:
    """The absolute form of a path as a client wrote it; `home` is the caller's `/local/domain/N`.  Raises EINVAL."""
    if not path:
        raise EINVAL
    if path[:1] not in {b"/", b"@"}:
        path = home + b"/" + path
    check_path(path)
    return path


def counted_length(path: bytes) -> int:
    """Bytes of a canonical path that count against the quota path-max: those behind a leading `/local/domain/N/`."""
    m = _DOMAIN_HOME.match(path)
    return len(path) - m.end() if m else len(path)


def components(path: bytes) -> tuple[bytes, ...]:
    """Names from the root to the node; empty for `/`."""
    return tuple(path[1:].split(b"/")) if path != b"/" else ()


def parent(path: bytes) -> bytes:
    """Path of the parent; the root is its own parent, and also that of a special node."""
    return path[: path.rfind(b"/")] if path.rfind(b"/") > 0 else b"/"
