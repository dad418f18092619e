"""Every operation of a client, sans-IO: which requests to send, and what their replies mean.

An operation is a generator.  It yields a `Request`, is sent the payload of the reply (or thrown the `StoreError` of the
refusal), and returns its result; most yield once.  Whoever drives it does the I/O, so the blocking and the trio client
share every line of this module.  It does not know connections, request ids or transactions.

Bytes are bytes: values go in and come out as `bytes` (a `str` is encoded as UTF-8).  Paths and names, which the
protocol restricts to a part of ASCII, come out as `str`; they go in as either.
"""

from collections.abc import Callable, Generator, Iterable
from typing import Final, NamedTuple, TypeVar

from protocol import errors
from protocol.client.failures import UnexpectedReply
from protocol.errors import EINVAL, ERROR_NAMES, StoreError
from protocol.ops import Op
from protocol.payload import strings
from protocol.permissions import Permission, parse_permission

T = TypeVar("T")

Text = str | bytes
"""A path, a name or a word as callers may give it."""
PermissionLike = Permission | str | bytes
"""A permission entry as callers may give it: `Permission(READ, 7)` or `"r7"`."""

DIRECTORY_RESTARTS: Final = 100
"""How often a long listing starts anew because the node changed meanwhile, before it fails with EAGAIN."""


class Request(NamedTuple):
    """What to ask; the reply's payload is sent back into the generator."""

    op: Op
    payload: bytes


Steps = Generator[Request, bytes, T]


def encode_text(text: Text) -> bytes:
    """A string as it travels, without its NUL.  Raises EINVAL if it contains one: it would become two strings."""
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
    if b"\0" in data:
        error = EINVAL()
        error.add_note(f"a NUL inside {text!r}")
        raise error
    return data


def decode_text(data: bytes) -> str:
    """A string as callers see it; bytes that are no UTF-8 survive a round trip through `encode_text`."""
    return data.decode("utf-8", "surrogateescape")


def refusal(payload: bytes) -> StoreError:
    """The exception for an error reply: the class of that name, where there is one.

    A name outside the protocol's table (oxenstored's EQUOTA) becomes EINVAL, as in libxenstore, with the name noted.
    """
    name = payload.rstrip(b"\0").decode("ascii", "replace")
    if name not in ERROR_NAMES:
        error: StoreError = EINVAL()
        error.add_note(f"the daemon called it {name!r}")
        return error
    kind: Callable[[], StoreError] = getattr(errors, name, lambda: StoreError(name))
    return kind()


def _strings(*texts: Text) -> bytes:
    return b"".join(encode_text(text) + b"\0" for text in texts)


def _numbers(*numbers: int) -> bytes:
    return b"".join(b"%d\0" % number for number in numbers)


def _text(payload: bytes) -> bytes:
    """A reply that is one text; daemons differ in whether a NUL closes it."""
    return payload[:-1] if payload[-1:] == b"\0" else payload


def _number(payload: bytes) -> int:
    try:
        return int(_text(payload))
    except ValueError:
        raise UnexpectedReply(f"a number was expected, the reply is {payload[:40]!r}") from None


def read(path: Text) -> Steps[bytes]:
    """READ: the value."""
    return (yield Request(Op.READ, _strings(path)))


def write(path: Text, value: Text) -> Steps[None]:
    """WRITE: the value may contain anything."""
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
    yield Request(Op.WRITE, _strings(path) + data)


def mkdir(path: Text) -> Steps[None]:
    """MKDIR."""
    yield Request(Op.MKDIR, _strings(path))


def rm(path: Text) -> Steps[None]:
    """RM."""
    yield Request(Op.RM, _strings(path))


def exists(path: Text) -> Steps[bool]:
    """Whether READ finds a node; other refusals than ENOENT are passed on."""
    try:
        yield Request(Op.READ, _strings(path))
    except StoreError as error:
        if error.name == "ENOENT":
            return False
        raise
    return True


def directory(path: Text) -> Steps[list[str]]:
    """DIRECTORY, or DIRECTORY_PART as often as it takes when the list is too long for one reply."""
    wanted = _strings(path)
    try:
        names = yield Request(Op.DIRECTORY, wanted)
    except StoreError as error:
        if error.name != "E2BIG":
            raise
        too_long = error
    else:
        return [decode_text(name) for name in strings(names)]
    try:
        names = yield from _directory_in_parts(wanted)
    except StoreError as error:
        if error.name == "ENOSYS":
            raise too_long from None
        raise
    return [decode_text(name) for name in strings(names)]


def _directory_in_parts(wanted: bytes) -> Steps[bytes]:
    """All names, each with its NUL, of one and the same generation of the node."""
    generation, names, restarts = b"", b"", 0
    while True:
        reply = yield Request(Op.DIRECTORY_PART, wanted + _numbers(len(names)))
        seen, nul, part = reply.partition(b"\0")
        if not (nul and part):
            raise UnexpectedReply(f"a part of a directory was expected, the reply is {reply[:40]!r}")
        if names and seen != generation:
            restarts += 1
            if restarts > DIRECTORY_RESTARTS:
                raise errors.EAGAIN
            names = b""
            continue
        generation, names = seen, names + part
        if names[-2:] in {b"\0", b"\0\0"}:
            return names[:-1]


def get_perms(path: Text) -> Steps[list[Permission]]:
    """GET_PERMS."""
    reply = yield Request(Op.GET_PERMS, _strings(path))
    try:
        return [parse_permission(entry) for entry in strings(reply)]
    except EINVAL:
        raise UnexpectedReply(f"permissions were expected, the reply is {reply[:40]!r}") from None


def set_perms(path: Text, permissions: Iterable[PermissionLike]) -> Steps[None]:
    """SET_PERMS."""
    if isinstance(permissions, (str, bytes, Permission)):
        raise TypeError("a list of permission entries is needed, not a single one")
    entries = [p if isinstance(p, Permission) else parse_permission(encode_text(p)) for p in permissions]
    yield Request(Op.SET_PERMS, _strings(path, *(entry.encode() for entry in entries)))


def get_domain_path(domid: int) -> Steps[str]:
    """GET_DOMAIN_PATH."""
    return decode_text(_text((yield Request(Op.GET_DOMAIN_PATH, _numbers(domid)))))


def is_domain_introduced(domid: int) -> Steps[bool]:
    """IS_DOMAIN_INTRODUCED."""
    reply = yield Request(Op.IS_DOMAIN_INTRODUCED, _numbers(domid))
    if _text(reply) not in {b"T", b"F"}:
        raise UnexpectedReply(f"T or F was expected, the reply is {reply[:40]!r}")
    return reply[:1] == b"T"


def introduce(domid: int, gfn: int, evtchn: int) -> Steps[None]:
    """INTRODUCE."""
    yield Request(Op.INTRODUCE, _numbers(domid, gfn, evtchn))


def release(domid: int) -> Steps[None]:
    """RELEASE."""
    yield Request(Op.RELEASE, _numbers(domid))


def resume(domid: int) -> Steps[None]:
    """RESUME."""
    yield Request(Op.RESUME, _numbers(domid))


def set_target(domid: int, target: int) -> Steps[None]:
    """SET_TARGET."""
    yield Request(Op.SET_TARGET, _numbers(domid, target))


def get_feature(domid: int | None) -> Steps[int]:
    """GET_FEATURE."""
    return _number((yield Request(Op.GET_FEATURE, b"" if domid is None else _numbers(domid))))


def set_feature(domid: int, value: int) -> Steps[None]:
    """SET_FEATURE."""
    yield Request(Op.SET_FEATURE, _numbers(domid, value))


def quota_names() -> Steps[list[str]]:
    """GET_QUOTA without a name."""
    return decode_text(_text((yield Request(Op.GET_QUOTA, b"")))).split()


def get_quota(name: Text, domid: int | None) -> Steps[int]:
    """GET_QUOTA of one quota."""
    domain = b"" if domid is None else _numbers(domid)
    return _number((yield Request(Op.GET_QUOTA, domain + _strings(name))))


def set_quota(name: Text, value: int, domid: int | None) -> Steps[None]:
    """SET_QUOTA."""
    domain = b"" if domid is None else _numbers(domid)
    yield Request(Op.SET_QUOTA, domain + _strings(name) + _numbers(value))


def control(words: Iterable[Text]) -> Steps[str]:
    """CONTROL: the text of the reply."""
    return decode_text(_text((yield Request(Op.CONTROL, _strings(*words)))))


def start_transaction() -> Steps[int]:
    """TRANSACTION_START: the transaction's id."""
    return _number((yield Request(Op.TRANSACTION_START, b"\0")))


def end_transaction(commit: bool) -> Request:
    """TRANSACTION_END, as a request: an abort is sent without waiting for its reply."""
    return Request(Op.TRANSACTION_END, b"T\0" if commit else b"F\0")


def commit_transaction() -> Steps[None]:
    """TRANSACTION_END that commits."""
    yield end_transaction(True)
