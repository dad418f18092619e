"""CONTROL: the operator's commands (control.c: do_control), as `xenstore-control` sends them.

`COMMANDS` at the end is the table: name, function, what `help` says of its arguments.
"""

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from protocol.errors import EINVAL, ENOENT
from protocol.payload import atoi, strings
from recovery_box.items import Connection
from xenstore_logic import trace
from xenstore_logic.version import CODE
from xenstore_state import effects, quotas
from xenstore_state.domains import Domain
from xenstore_state.restarts import POLICY, Policy
from xenstore_state.tree import walk

if TYPE_CHECKING:
    from xenstore_logic.core import Core

log = logging.getLogger(__name__)

OK: Final = "OK"
LIBRARY: Final = "/var/lib/xen/xenstore"
"""Where relative file names lie (XEN_LIB_DIR)."""


def control(core: "Core", by: Connection, tx_id: int, payload: bytes) -> bytes:
    """CONTROL: a command and its arguments; text with a closing NUL comes back."""
    words = [word.decode("latin1") for word in strings(payload)]
    command = COMMANDS.get(words[0]) if words else None
    if command is None:
        raise EINVAL
    return command.run(core, by, words[1:]).encode("latin1", "replace") + b"\0"


def _check(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Counts everything anew and says in the log whether the books agree."""
    _none(arguments)
    tree, counted = core.store.tree, dict[int, int]()
    for node in walk(tree.root):
        counted[node.acl[0][1]] = counted.get(node.acl[0][1], 0) + 1
    if counted == tree.owned:
        log.info("check: %d nodes, all accounts agree", tree.size)
    else:
        log.error("check: nodes by owner are %s, the accounts say %s", counted, tree.owned)
    return OK


def _log(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Shows or sets what is traced."""
    if not arguments:
        lines = [f"{name:<8}: {'on' if on else 'off'}\n" for name, on in core.trace.switches.items()]
        return "Log switch settings:\n" + "".join(lines)
    word = _only(arguments)
    if word in {"on", "off"}:
        core.perform(effects.SETTING, by, trace.ON, word)
    elif word[:1] in {"+", "-"} and word[1:] in trace.SWITCHES:
        core.perform(effects.SETTING, by, trace.SWITCH + word[1:], "on" if word[0] == "+" else "off")
    else:
        raise EINVAL
    core.trace.obey(core.store.items.settings)
    return OK


def _logfile(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Names the trace file and starts tracing."""
    name = _only(arguments)
    if not name or "\0" in name:
        raise EINVAL
    core.perform(effects.SETTING, by, trace.FILE, os.path.join(LIBRARY, name))
    core.trace.obey(core.store.items.settings)
    return OK


def _memreport(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Writes how much of what there is to the log, or appends it to a file."""
    if len(arguments) > 1:
        raise EINVAL
    store = core.store
    report = (
        f"nodes {store.tree.size}, watches {store.watches.count}, connections {len(store.items.connections)}, "
        f"transactions {len(store.items.transactions)}, "
        f"pending output {sum(c.pending.size for c in store.items.connections)} bytes"
    )
    if not arguments:
        log.info("memreport: %s", report)
        return OK
    name = os.path.join(LIBRARY, arguments[0])
    try:
        fd = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            os.write(fd, report.encode() + b"\n")
        finally:
            os.close(fd)
    except (OSError, ValueError):
        raise EINVAL from None
    return OK


def _print(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Writes a line to trace and log."""
    text = _only(arguments)
    core.trace.line(f"control: {text}")
    log.info("control: %s", ascii(text)[1:-1])
    return OK


def _quota(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Shows or sets quotas, shows a domain's use of them or the most ever used."""
    match arguments:
        case []:
            return _settings(core, "")
        case ["set", name, value]:
            return _set(core, by, name, value)
        case ["max"]:
            return _peaks(core)
        case ["max", "-r"]:
            core.perform(effects.FORGET_PEAKS, by)
            return _peaks(core)
        case [domid] if domid != "set":
            return _usage(core, atoi(domid.encode("latin1")))
        case _:
            raise EINVAL


def _quota_soft(core: "Core", by: Connection, arguments: list[str]) -> str:
    """The same for soft quotas, which only warn."""
    match arguments:
        case []:
            return _settings(core, quotas.SOFT)
        case ["set", name, value]:
            return _set(core, by, quotas.SOFT + name, value, soft=True)
        case _:
            raise EINVAL


def _settings(core: "Core", prefix: str) -> str:
    values = core.store.domains.quotas
    lines = [
        f"{name:<17}: {values[prefix + name]:8} {quota.description}\n"
        for name, quota in quotas.QUOTAS.items()
        if prefix + name in values
    ]
    return "Quota settings:\n" + "".join(lines)


def _set(core: "Core", by: Connection, name: str, value: str, *, soft: bool = False) -> str:
    if name.startswith(quotas.SOFT) and not soft:
        raise EINVAL
    number = atoi(value.encode("latin1"))
    if number < 1 or not quotas.is_name(name) or name.count(quotas.SOFT) > 1:
        raise EINVAL
    core.perform(effects.SET_QUOTA, by, effects.GLOBAL, name, number)
    return OK


def _used(core: "Core", domid: int) -> dict[str, int]:
    """How much of each quota a domain uses."""
    used = dict.fromkeys(quotas.QUOTAS, 0)
    used["nodes"] = core.store.tree.owned.get(domid, 0)
    used["memory"] = core.store.tree.memory.get(domid, 0)
    domain = core.store.domains.known.get(domid)
    ring = domain.connection if domain is not None else None
    if ring is not None:
        used["watches"] = len(ring.watches)
        used["transactions"] = len(ring.transactions)
        used["memory"] = core.store.memory(ring.subject) + ring.pending.size
        used["outstanding"] = core.outstanding(ring)
    return used


def _used_and_noted(core: "Core", domain: Domain) -> dict[str, int]:
    """The same; what others have given it, and what is outstanding, is noted as the most so far only here."""
    used = _used(core, domain.domid)
    for peaks in (domain.peaks, core.store.domains.peaks) if domain.domid else (domain.peaks,):
        for name, amount in used.items():
            peaks[name] = max(peaks.get(name, 0), amount)
    return used


def _usage(core: "Core", domid: int) -> str:
    domain = core.store.domains.known.get(domid)
    if domain is None:
        raise ENOENT
    lines = [
        f"{name:<17}: {amount:8} (max {domain.peaks[name]:8}){_refused(domain, name)}\n"
        for name, amount in _used_and_noted(core, domain).items()
    ]
    return f"Domain {domid}:\n" + "".join(lines)


def _refused(domain: Domain, quota: str) -> str:
    """How often a quota has refused the domain something, if it has."""
    return f" refused {domain.refused[quota]}" if quota in domain.refused else ""


def _peaks(core: "Core") -> str:
    peaks = core.store.domains.peaks
    for domain in core.store.domains.known:
        if domain.domid:  # of domains that quotas bind
            _used_and_noted(core, domain)
    return "Max. seen accounting values:\n" + "".join(f"{n:<17}: {peaks.get(n, 0):8}\n" for n in quotas.QUOTAS)


def _live_update(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Replacing the daemon by another one's binary is refused in words, as its client expects."""
    match arguments:
        case ["-f", name]:
            if not os.path.exists(name):
                return "File not accessible."
            if not os.access(name, os.X_OK):
                return "File not executable."
            return "Live update is not supported: this daemon hands no state stream to another."
        case ["-a"]:
            return "No live-update session active."
        case ["-c", _] | ["-s"] | ["-s", "-F"] | ["-s", "-t", _, *_]:
            return "Not in live-update session."
        case _:
            raise EINVAL


def _restart(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Lets another Logic take over at the end of this turn; `slow`: everything starts again, with the code that is there now."""
    match arguments:
        case [] | ["fast"]:
            core.retiring = True
        case ["slow"] if core.guarded:
            core.perform(effects.RESTART, by)
        case ["slow"]:
            return "Nobody would start the daemon again: it runs with --no-guardian, or its log says why."
        case _:
            raise EINVAL
    return OK


def _restarts(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Shows how often and why Logic was restarted, and when it is on purpose."""
    _none(arguments)
    return f"code: {CODE}\npolicy: {core.store.items.settings.get(POLICY) or 'on-crash'}\n" + core.history


def _restart_policy(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Shows or sets when Logic is restarted on purpose."""
    if not arguments:
        return f"{core.store.items.settings.get(POLICY) or 'on-crash'}\n"
    text = _only(arguments)
    try:
        Policy.parse(text)
    except ValueError:
        raise EINVAL from None
    core.perform(effects.SETTING, by, POLICY, text)
    return OK


def _snapshot(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Remembers the tree as it is under a name."""
    name = _only(arguments)
    if not name:
        raise EINVAL
    core.perform(effects.SNAPSHOT, by, name)
    return OK


def _rollback(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Makes the tree what it was; watches are told of what that changes."""
    core.fire(core.perform(effects.ROLLBACK, by, _only(arguments)))
    return OK


def _snapshots(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Lists the snapshots."""
    _none(arguments)
    return "".join(f"{name}: {len(copy.nodes)} nodes\n" for name, copy in core.store.snapshots.items())


def _help(core: "Core", by: Connection, arguments: list[str]) -> str:
    """Lists the commands."""
    _none(arguments)
    return "".join(f"{name:<15} {command.arguments}\n" for name, command in COMMANDS.items())


def _none(arguments: list[str]) -> None:
    if arguments:
        raise EINVAL


def _only(arguments: list[str]) -> str:
    if len(arguments) != 1:
        raise EINVAL
    return arguments[0]


class Command(NamedTuple):
    """One row of the table."""

    run: Callable[["Core", Connection, list[str]], str]
    arguments: str


COMMANDS: Final = {
    "check": Command(_check, ""),
    "log": Command(_log, "[on|off|+<switch>|-<switch>]"),
    "live-update": Command(_live_update, "[-c <cmdline>] [-F] [-t <timeout>] [-v <version>] <file>"),
    "logfile": Command(_logfile, "<file>"),
    "memreport": Command(_memreport, "[<file>]"),
    "print": Command(_print, "<string>"),
    "quota": Command(_quota, "[set <name> <val>|<domid>|max [-r]]"),
    "quota-soft": Command(_quota_soft, "[set <name> <val>]"),
    "restart": Command(_restart, "[fast|slow]"),
    "restarts": Command(_restarts, ""),
    "restart-policy": Command(
        _restart_policy, "[on-crash|notify|every=<seconds>|after=<requests>|per-request[=guests]][,...]"
    ),
    "snapshot": Command(_snapshot, "<name>"),
    "rollback": Command(_rollback, "<name>"),
    "snapshots": Command(_snapshots, ""),
    "help": Command(_help, ""),
}
