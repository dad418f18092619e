"""XenStore from a shell, for machines without xenstore-utils: `python -m protocol.client COMMAND ...`.

Commands, options and output follow Xen's `xenstore-*` tools where those exist, so scripts can switch.  Exit status: 0
done, 1 failed (with one line on standard error), 2 wrong usage.
"""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from protocol.client.blocking import Client, Nodes, Transaction
from protocol.client.escapes import escape, unescape
from protocol.errors import StoreError
from protocol.permissions import Permission, parse_permission

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        with Client(arguments.socket, timeout=arguments.timeout) as client:
            status: int = arguments.run(client, arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader of our output left.  The interpreter would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except _Failed as failure:
        return _complain(str(failure))
    except (OSError, ValueError, StoreError) as error:
        return _complain(_describe(error))


class _Failed(Exception):
    """A command failed; the message says what and why."""


def _complain(message: str) -> int:
    print(f"protocol.client: {escape(message.encode('utf-8', 'surrogateescape'))}", file=sys.stderr)
    return 1


def _describe(error: Exception) -> str:
    if not isinstance(error, StoreError):
        return str(error)
    if error.args != (error.name,):
        return str(error.args[0])
    return f"{os.strerror(getattr(errno, error.name))} ({error.name})"


class _About:
    """Names the path in the message of a failure: `with _About(path): ...`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # A conflict is not about the path: it must reach `transact` as it is.
        if isinstance(error, StoreError) and error.name != "EAGAIN":
            raise _Failed(f"{self._path}: {_describe(error)}") from error


def _join(parent: str, name: str) -> str:
    return f"{parent.rstrip('/')}/{name}" if parent else name


def _format(permissions: list[Permission]) -> str:
    return ",".join(entry.encode().decode() for entry in permissions)


def _print_value(value: bytes, raw: bool, end: bytes = b"\n") -> None:
    sys.stdout.buffer.write(value if raw else escape(value).encode() + end)


# Commands


def _tree(nodes: Nodes, top: str) -> Iterator[tuple[str, int]]:
    """Every path below `top`, parents first, with its depth.  Nodes that vanish meanwhile or may not be listed end there."""
    pending = [(path, 0) for path in reversed(_children(nodes, top))]
    while pending:
        path, depth = pending.pop()
        yield path, depth
        try:
            children = _children(nodes, path)
        except StoreError as error:
            if error.name not in {"ENOENT", "EACCES"}:
                raise
            continue
        pending.extend((child, depth + 1) for child in reversed(children))


def _children(nodes: Nodes, path: str) -> list[str]:
    return [_join(path, name) for name in nodes.directory(path)]


def _ls(client: Client, arguments: argparse.Namespace) -> int:
    for top in arguments.path or ["/"]:
        with _About(top):
            for path, depth in _tree(client, top):
                _ls_line(client, path, depth, arguments)
    return 0


def _ls_line(client: Client, path: str, depth: int, arguments: argparse.Namespace) -> None:
    label = path if arguments.full else " " * depth + path.rpartition("/")[2]
    try:
        line = f'{label} = "{escape(client.read(path))}"'
        if arguments.permissions:
            line += f"   ({_format(client.get_perms(path))})"
    except StoreError as error:
        if error.name == "ENOENT":
            return
        line = f"{label}:  ({error.name})"
    print(line)


def _list(client: Client, arguments: argparse.Namespace) -> int:
    for path in arguments.path or ["/"]:
        with _About(path):
            names = client.directory(path)
        for name in names:
            print(_join(path, name) if arguments.prefix else name)
    return 0


def _read(client: Client, arguments: argparse.Namespace) -> int:
    def read_all(nodes: Nodes) -> list[bytes]:
        values = []
        for path in arguments.path:
            with _About(path):
                values.append(nodes.read(path))
        return values

    values = _together(client, len(arguments.path), read_all)
    for path, value in zip(arguments.path, values, strict=True):
        if arguments.prefix:
            print(f"{path}: ", end="", flush=True)
        _print_value(value, arguments.raw)
    return 0


def _write(client: Client, arguments: argparse.Namespace) -> int:
    words = arguments.pair
    if len(words) % 2:
        raise _Failed(f"{words[-1]}: a value is missing")
    pairs = []
    for path, text in zip(words[::2], words[1::2], strict=True):
        try:
            pairs.append((path, os.fsencode(text) if arguments.raw else unescape(text)))
        except ValueError as error:
            raise _Failed(f"{path}: {error}") from error

    def write_all(nodes: Nodes) -> None:
        for path, value in pairs:
            with _About(path):
                nodes.write(path, value)

    _together(client, len(pairs), write_all)
    return 0


def _together(client: Client, count: int, body: Callable[[Nodes], T]) -> T:
    """Several operations are one transaction; a single one needs none."""
    return client.transact(body) if count > 1 else body(client)


def _mkdir(client: Client, arguments: argparse.Namespace) -> int:
    for path in arguments.path:
        with _About(path):
            client.mkdir(path)
    return 0


def _rm(client: Client, arguments: argparse.Namespace) -> int:
    def remove(tx: Transaction) -> None:
        for path in arguments.path:
            with _About(path):
                tx.rm(path)
                if arguments.tidy:
                    _tidy(tx, path)

    client.transact(remove)
    return 0


def _tidy(tx: Transaction, path: str) -> None:
    """Removes the ancestors that `path` leaves without value and children."""
    while (path := path.rpartition("/")[0]) and not tx.directory(path) and not tx.read(path):
        tx.rm(path)


def _exists(client: Client, arguments: argparse.Namespace) -> int:
    try:
        return 0 if all(client.exists(path) for path in arguments.path) else 1
    except StoreError as error:
        if error.name == "EACCES":
            return 1
        raise


def _chmod(client: Client, arguments: argparse.Namespace) -> int:
    def change(tx: Transaction) -> None:
        with _About(arguments.path):
            paths = [arguments.path]
            if arguments.recurse:
                paths += [path for path, _ in _tree(tx, arguments.path)]
            for path in paths:
                tx.set_perms(path, arguments.permission)

    client.transact(change)
    return 0


def _perms(client: Client, arguments: argparse.Namespace) -> int:
    for path in arguments.path:
        with _About(path):
            text = _format(client.get_perms(path))
        print(f"{path}: {text}" if len(arguments.path) > 1 else text)
    return 0


def _watch(client: Client, arguments: argparse.Namespace) -> int:
    remaining: int | None = arguments.number
    with client.watch(*arguments.path, depth=arguments.depth, timeout=arguments.wait) as events:
        while remaining is None or remaining > 0:
            event = next(events, None)
            if event is None:
                raise _Failed(f"no event within {arguments.wait:g} s")
            if event.overflow:
                print("protocol.client: events were lost", file=sys.stderr)
            print(event.path, flush=True)
            remaining = None if remaining is None else remaining - 1
    return 0


def _control(client: Client, arguments: argparse.Namespace) -> int:
    text = client.control(*arguments.word)
    print(text, end="" if text.endswith("\n") else "\n")
    return 0


def _quota(client: Client, arguments: argparse.Namespace) -> int:
    domid, name = arguments.domain, arguments.name
    with _About(name or ("quotas" if domid is None else f"domain {domid}")):
        if arguments.value is not None:
            client.set_quota(name, arguments.value, domid)
            return 0
        for each in [name] if name else client.quota_names():
            print(f"{each:<18} {client.get_quota(each, domid)}")
    return 0


# Command line


def _permission(text: str) -> Permission:
    try:
        return parse_permission(os.fsencode(text))
    except StoreError:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of n, r, w, b and a domid") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m protocol.client",
        description="Looks at XenStore and changes it.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage.",
    )
    parser.add_argument("--socket", metavar="PATH", help="socket or xenbus device of the daemon")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="fail when an answer takes longer")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Client, argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    ls = command("ls", _ls, "Shows everything below a node, with values.")
    ls.add_argument("-f", "--full", action="store_true", help="whole paths instead of a tree")
    ls.add_argument("-p", "--permissions", action="store_true", help="with permission lists")
    ls.add_argument("path", nargs="*")
    names = command("list", _list, "Shows the names of a node's children.")
    names.add_argument("-p", "--prefix", action="store_true", help="whole paths")
    names.add_argument("path", nargs="*")
    read = command("read", _read, "Shows values, unprintable bytes as \\t, \\ooo, \\xhh...")
    read.add_argument("-p", "--prefix", action="store_true", help="with the path before each value")
    read.add_argument("-R", "--raw", action="store_true", help="bytes as they are, no newline added")
    read.add_argument("path", nargs="+")
    write = command("write", _write, "Sets values; \\t, \\ooo, \\xhh... in them become bytes.")
    write.add_argument("-R", "--raw", action="store_true", help="take values as they are")
    write.add_argument("pair", nargs="+", metavar="path value")
    command("mkdir", _mkdir, "Makes nodes and their parents.").add_argument("path", nargs="+")
    rm = command("rm", _rm, "Removes nodes and everything below them.")
    rm.add_argument("-t", "--tidy", action="store_true", help="and parents that become empty")
    rm.add_argument("path", nargs="+")
    command("exists", _exists, "Fails silently unless all nodes can be read.").add_argument("path", nargs="+")
    chmod = command("chmod", _chmod, "Replaces a permission list, such as n0 r7: owner first.")
    chmod.add_argument("-r", "--recurse", action="store_true", help="also of everything below")
    chmod.add_argument("path")
    chmod.add_argument("permission", nargs="+", type=_permission)
    command("perms", _perms, "Shows permission lists.").add_argument("path", nargs="+")
    watch = command("watch", _watch, "Shows the path of every change at or below nodes.")
    watch.add_argument("-n", "--number", type=int, metavar="N", help="end after so many events")
    watch.add_argument("-d", "--depth", type=int, metavar="N", help="only so many levels below")
    watch.add_argument("-w", "--wait", type=float, metavar="SECONDS", help="fail when so long nothing happens")
    watch.add_argument("path", nargs="+")
    control = command("control", _control, "Sends a command to the daemon and shows its answer; try help.")
    control.add_argument("word", nargs="+")
    quota = command("quota", _quota, "Shows what domains may use, or sets it; 0 is unlimited.")
    quota.add_argument("-d", "--domain", type=int, metavar="DOMID", help="of this domain, not of those to come")
    quota.add_argument("name", nargs="?")
    quota.add_argument("value", nargs="?", type=int)
    return parser
