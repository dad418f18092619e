"""The command line: every option of the C daemon (core.c: main), and ours.

Options that make no sense for this daemon are accepted and named in the log, so that existing service files go on working.
Unknown options are reported and ignored, as getopt does it there; a word that is no option ends the start.
"""

import argparse
import os
import re
from dataclasses import dataclass, field
from typing import Final

from xenstore_logic.trace import SWITCHES
from xenstore_state import quotas
from xenstore_state.restarts import Policy

DEFAULT_RUNDIR: Final = "/var/run/xenstored"
INT_MAX: Final = 2**31 - 1
PATH_MAX: Final = 2048
_QUOTA_OPTIONS: Final = {
    "-E": ("--entry-nb", "nodes", "nodes a domain may own"),
    "-S": ("--entry-size", "node-size", "size of a node in bytes"),
    "-W": ("--watch-nb", "watches", "watches of a domain"),
    "-t": ("--transaction", "transactions", "open transactions of a domain"),
    "-A": ("--perm-nb", "node-permissions", "permission entries of a node"),
    "-M": ("--path-max", "path-max", "length of a path in bytes, at most 2048"),
}


class OptionError(Exception):
    """The daemon cannot be started like this; the text says why."""


@dataclass
class Options:
    """What was asked for."""

    foreground: bool = False
    domain_init: bool = True
    simulated_xen: str | None = None
    keep_orphans: bool = False
    event_seconds: int | None = None
    restart: str | None = None
    watchdog: float | None = None
    guardian: bool = True
    standby: bool = True
    pid_file: str | None = None
    trace_file: str | None = None
    trace_switches: dict[str, bool] = field(default_factory=dict)
    quotas: dict[str, int] = field(default_factory=dict)
    rundir: str = DEFAULT_RUNDIR
    socket: str = DEFAULT_RUNDIR + "/socket"
    notes: list[str] = field(default_factory=list)
    """What was accepted without effect, for the log."""


def _number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > INT_MAX:
        raise OptionError(f"{text!r} is not a number from 0 to {INT_MAX}")
    return int(text)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text):
        raise OptionError(f"{text!r} is not a number of seconds")
    return float(text)


def _assignment(text: str, soft: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    if not equals or not quotas.is_name(soft + name):
        raise OptionError(f"{text!r}: expected NAME=NUMBER with one of {', '.join(quotas.QUOTAS)}")
    return soft + name, _number(value)


_FLAGS: Final = "HNDKURI"
_WITH_VALUE: Final = "FTESWtAMQqw"


def _as_getopt_reads(arguments: list[str], notes: list[str]) -> list[str]:
    """Takes bundled short options apart, and gives --trace-control its value even where that begins with a dash."""
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            return [*words, word, *rest]
        if word == "--trace-control":
            word = f"{word}={next(rest, '')}"  # noqa: PLW2901  # the two words are one option
        if len(word) < 3 or word[0] != "-" or word[1] == "-":
            words.append(word)
            continue
        for at, letter in enumerate(word[1:], 1):
            if letter in _WITH_VALUE:
                words.append("-" + word[at:])
                break
            if letter in _FLAGS:
                words.append("-" + letter)
            else:
                notes.append(f"-{letter}: unknown option, ignored")
    return words


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # argparse would exit with 2
        raise OptionError(message)


def _parser() -> argparse.ArgumentParser:
    p = _Parser(prog="xenstored", add_help=False, allow_abbrev=False, description="The XenStore daemon.")
    p.add_argument("-H", "--help", action="help", help="this text")
    p.add_argument("-N", "--no-fork", action="store_true", help="stay in the foreground, log to stderr")
    p.add_argument("-D", "--no-domain-init", action="store_true", help="sockets only: no hypervisor is looked for")
    p.add_argument("--simulated-xen", metavar="DIR", help="serve emulated domains that live in this directory")
    p.add_argument(
        "--restart",
        metavar="POLICY",
        help="when Logic is restarted on purpose: every=SECONDS, after=REQUESTS (joined by commas), per-request,"
        " per-request=guests; always after a crash, on SIGUSR1 and when xenstore-control asks for it",
    )
    p.add_argument(
        "--watchdog", metavar="S", help="seconds after which a Logic that hangs is killed (default 2, 0: never)"
    )
    p.add_argument(
        "--guardian",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether State survives its own death (the default): it writes down what it does, and systemd, or a small"
        " process, starts it again with all connections",
    )
    p.add_argument(
        "--standby",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether another Logic stands by, which takes over within a millisecond or two (the default); without it one is"
        " forked when it is needed",
    )
    p.add_argument("-F", "--pid-file", metavar="FILE", help="write the daemon's pid there")
    p.add_argument("-T", "--trace-file", metavar="FILE", help="trace messages into this file")
    p.add_argument("--trace-control", metavar="[+-]SWITCH", action="append", default=[], help=" ".join(SWITCHES))
    for short, (long, _, what) in _QUOTA_OPTIONS.items():
        p.add_argument(short, long, metavar="N", help=f"quota: {what}")
    p.add_argument("-Q", "--quota", metavar="NAME=N", action="append", default=[], help="set any quota")
    p.add_argument("-q", "--quota-soft", metavar="NAME=N", action="append", default=[], help="set a soft quota")
    p.add_argument(
        "-w",
        "--timeout",
        metavar="watch-event=S",
        action="append",
        default=[],
        help="seconds that events wait for a domain which does not read them (default 20, 0: for ever)",
    )
    p.add_argument(
        "-K", "--keep-orphans", action="store_true", help="nodes of a domain that is gone pass to domain 0 and stay"
    )
    p.add_argument("-U", "--live-update", action="store_true", help="accepted, see the log")
    p.add_argument("-I", "--internal-db", nargs="?", const="on", help="accepted, see the log (older daemons)")
    p.add_argument("-R", "--no-recovery", action="store_true", help="accepted, see the log (older daemons)")
    for name in ("--event", "--master-domid", "--priv-domid"):
        p.add_argument(name, metavar="N", help="accepted, see the log")
    p.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    return p


_REPEATED: Final = frozenset({"trace_control", "quota", "quota_soft", "timeout"})


def _refuse_dashes(given: argparse.Namespace) -> None:
    """argparse takes a value that is just `--` for the end of options, and leaves a list where a text should be."""
    for name, value in vars(given).items():
        if name != "words" and any(isinstance(each, list) for each in (value if name in _REPEATED else [value])):
            raise OptionError(f"--{name.replace('_', '-')}: -- is no value")


_WITHOUT_EFFECT: Final = {
    "live_update": "-U: this daemon restarts its own parts and takes no state stream",
    "internal_db": "-I: the store is always in memory",
    "no_recovery": "-R: the store is never on disk",
    "event": "--event: for a stub domain",
    "master_domid": "--master-domid: sockets speak for domain 0",
    "priv_domid": "--priv-domid: domain 0 is privileged",
}


def parse(arguments: list[str], environment: dict[str, str]) -> Options:
    """Reads the command line and the environment.  Raises `OptionError`; `--help` prints and exits."""
    notes: list[str] = []
    for word in arguments:
        if not word.isprintable():  # bytes that are no UTF-8, too: nobody could be told of them
            raise OptionError(f"{word!a}: not a readable text")
    given, unknown = _parser().parse_known_args(_as_getopt_reads(arguments, notes))
    _refuse_dashes(given)
    words = [w for w in (*given.words, *unknown) if not w.startswith("-")]
    if words:
        raise OptionError(f"{words[0]}: no such argument")
    options = Options(foreground=given.no_fork, domain_init=not given.no_domain_init, pid_file=given.pid_file)
    options.notes += [*notes, *(f"{word}: unknown option, ignored" for word in unknown)]
    for name in ("event", "master_domid", "priv_domid"):
        if getattr(given, name) is not None:
            _number(getattr(given, name))
    for word in given.timeout:
        what, equals, value = word.partition("=")
        if what != "watch-event" or not equals:
            raise OptionError(f"{word!r}: expected watch-event=SECONDS")
        options.event_seconds = _number(value)
    options.restart, options.watchdog = given.restart, _seconds(given.watchdog)
    try:
        Policy.parse(given.restart or "on-crash")
    except ValueError as e:
        raise OptionError(f"--restart {e}") from None
    options.guardian = given.guardian
    options.standby = given.standby
    options.keep_orphans = given.keep_orphans
    options.simulated_xen = os.path.abspath(given.simulated_xen) if given.simulated_xen else None
    options.notes += [f"{note}; no effect" for name, note in _WITHOUT_EFFECT.items() if getattr(given, name)]
    options.trace_file = given.trace_file
    for word in given.trace_control:
        if word[:1] not in {"+", "-"} or word[1:] not in SWITCHES:
            raise OptionError(f"--trace-control {word}: expected + or - and one of {' '.join(SWITCHES)}")
        options.trace_switches[word[1:]] = word[0] == "+"
    for long, quota, _ in _QUOTA_OPTIONS.values():
        value = getattr(given, long[2:].replace("-", "_"))
        if value is not None:
            options.quotas[quota] = _number(value)
    options.quotas.update(_assignment(word, "") for word in given.quota)
    options.quotas.update(_assignment(word, quotas.SOFT) for word in given.quota_soft)
    if options.quotas.get("path-max", 0) > PATH_MAX:
        raise OptionError(f"--path-max: at most {PATH_MAX}")
    options.rundir = os.path.abspath(environment.get("XENSTORED_RUNDIR") or DEFAULT_RUNDIR)
    options.socket = os.path.abspath(environment.get("XENSTORED_PATH") or os.path.join(options.rundir, "socket"))
    return options
