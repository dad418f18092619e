"""Error names of the wire protocol (xs_wire.h: xsd_errors) and the exception that carries one.

An error reply's payload is the name with a closing NUL.  Names outside the table never leave the daemon.
"""

from typing import Final

ERROR_NAMES: Final = (
    "EINVAL",
    "EACCES",
    "EEXIST",
    "EISDIR",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "EIO",
    "ENOTEMPTY",
    "ENOSYS",
    "EROFS",
    "EBUSY",
    "EAGAIN",
    "EISCONN",
    "E2BIG",
    "EPERM",
)


class StoreError(Exception):
    """A request was refused; `name` is one of `ERROR_NAMES`, `payload` the error reply's payload."""

    __slots__ = ("name", "payload")

    def __init__(self, name: str) -> None:
        if name not in ERROR_NAMES:
            raise ValueError(f"{name} is not an error name of the protocol")
        super().__init__(name)
        self.name = name
        self.payload = name.encode() + b"\0"

    def __reduce__(self) -> tuple[type["StoreError"], tuple[str]]:
        return StoreError, (self.name,)


# Classes, not shared instances: a shared one would keep the traceback of whoever raised it last.
class EINVAL(StoreError):
    """The request is malformed."""

    def __init__(self) -> None:
        super().__init__("EINVAL")


class EACCES(StoreError):
    """The caller lacks the right, or the right to learn more."""

    def __init__(self) -> None:
        super().__init__("EACCES")


class ENOENT(StoreError):
    """No such node, transaction, watch or domain."""

    def __init__(self) -> None:
        super().__init__("ENOENT")


class ENOSPC(StoreError):
    """A quota is exhausted."""

    def __init__(self) -> None:
        super().__init__("ENOSPC")


class EAGAIN(StoreError):
    """The transaction conflicts; the client should start over."""

    def __init__(self) -> None:
        super().__init__("EAGAIN")
