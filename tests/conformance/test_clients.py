"""Debian's XenStore clients on this daemon, compared with the same clients on Debian's C xenstored.

Every command is run on both, in the same order, and exit status, output and error output must be equal; the commands
for which they are not stand in `DIFFERENCES`, with the reason.  Xen's own `test-xenstore` must pass.
Debian's C xenstored is version 4.17, this daemon follows the newest: most of the differences are of that kind.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import which
from threading import Timer
from typing import NamedTuple

import pytest

from tests.conformance.wire import PATIENCE
from tests.oracle.build import MissingPackage, require
from tests.oracle.daemons import EACH_REQUEST, CXenstored, Daemon, OurDaemon, short_run_dir
from tests.oracle.restarting import restarted_inside

pytestmark = pytest.mark.oracle

CHILDREN = " ".join(f"/t/big/child-{i:03}-{'x' * 40} {i}" for i in range(150))

COMMANDS = f"""
xenstore-write /local/domain/0 ""
xenstore-ls -fp
xenstore-ls -p
xenstore-ls
xenstore-ls -f /tool
xenstore-write /t/a 1
xenstore-write /t/a 2 /t/b/c 3 /t/b/d ""
xenstore-write -s /t/s 1
xenstore-write /t/escaped 'a\\x00b\\n\\\\'
xenstore-write -R /t/raw 'a\\x00b'
xenstore-write /t/e ""
xenstore-write 'bad path' 1
xenstore-write /t//a 1
xenstore-write relative/x 1
xenstore-write /t/only-a-key
xenstore-read /t/a
xenstore-read /t/a /t/b/c
xenstore-read -p /t/a /t/b/c
xenstore-read /t/escaped
xenstore-read -R /t/escaped
xenstore-read -R /t/raw
xenstore-read /t/e
xenstore-read relative/x
xenstore-read /local/domain/0/relative/x
xenstore-read /t/missing
xenstore-read /t/a /t/missing /t/b/c
xenstore-read 'bad path'
xenstore-read @releaseDomain
xenstore-list /
xenstore-list /t
xenstore-list -p /t /t/b
xenstore-list /t/a
xenstore-list /t/missing
xenstore-ls /t
xenstore-ls -f /t
xenstore-ls -fp /t
xenstore-ls -p /t
xenstore-ls /t/missing
xenstore-chmod /t/a n0 r5
xenstore-ls -fp /t/a
xenstore-ls -fp /t
xenstore-chmod -r /t/b b0 w7
xenstore-chmod -u /t/b/c r0
xenstore-ls -fp /t
xenstore-chmod /t/a x0
xenstore-chmod /t/a n
xenstore-chmod /t/a n99
xenstore-chmod /t/missing n0
xenstore-chmod /t/a n0 r1 r2 r3 r4 r5 r6
xenstore-ls -fp /t
xenstore-exists /t/a
xenstore-exists /t/missing
xenstore-exists /t/a /t/missing
xenstore-exists 'bad path'
xenstore-write {CHILDREN}
xenstore-list /t/big
xenstore-ls -f /t/big
xenstore-rm /t/b/c
xenstore-rm /t/missing
xenstore-rm /t/missing/deep
xenstore-rm -t /t/b/d
xenstore-rm 'bad path'
xenstore-rm /
xenstore-ls /t/b
xenstore-rm /t/a /t/s /t/big
xenstore-list /t
xenstore-rm /t
xenstore-rm relative
xenstore-ls -fp
xenstore-watch -n 1 /t/w
xenstore-watch -n 1 @releaseDomain
xenstore-watch -n 1 'bad path'
xenstore-control help
xenstore-control check
xenstore-control check x
xenstore-control log
xenstore-control log on
xenstore-control log off
xenstore-control log +io
xenstore-control log +bogus
xenstore-control print hello
xenstore-control print
xenstore-control logfile
xenstore-control quota
xenstore-control quota set nodes 500
xenstore-control quota set nodes 1000
xenstore-control quota set nodes 0
xenstore-control quota set bogus 1
xenstore-control quota 32000
xenstore-control quota max
xenstore-control quota-soft
xenstore-control quota-soft set memory 2000000
xenstore-control quota-soft set nodes 5
xenstore-control quota-soft
xenstore-control memreport a b
xenstore-control bogus
xenstore-control live-update /nonexistent/xenstored
""".strip().splitlines()

NEWER_TEXT = "the texts of the newest C xenstored, which knows more quotas and log switches"

DIFFERENCES: dict[str, str] = {
    "xenstore-control help": NEWER_TEXT,
    "xenstore-control check x": "superfluous arguments are refused by the newest C xenstored; 4.17 ignores them",
    "xenstore-control log": "shows the switches in the newest C xenstored; 4.17 has none",
    "xenstore-control log +io": "sets a switch in the newest C xenstored; 4.17 has none",
    "xenstore-control log +bogus": NEWER_TEXT,
    "xenstore-control print": NEWER_TEXT,
    "xenstore-control logfile": NEWER_TEXT,
    "xenstore-control quota": NEWER_TEXT,
    "xenstore-control quota set nodes 0": NEWER_TEXT,
    "xenstore-control quota set bogus 1": NEWER_TEXT,
    "xenstore-control quota max": "shows maxima in the newest C xenstored; 4.17 takes the word for domain 0",
    "xenstore-control quota-soft": NEWER_TEXT,
    "xenstore-control quota-soft set nodes 5": NEWER_TEXT,
    "xenstore-control memreport a b": NEWER_TEXT,
    "xenstore-control bogus": NEWER_TEXT,
}
"""Commands whose result differs, and why.  An entry that is not needed fails."""


class Result(NamedTuple):
    """What one command did."""

    status: int
    output: str
    errors: str


def need(kind: type[Daemon]) -> None:
    """Skips when a daemon cannot run here."""
    reason = kind.available()
    if reason is not None:
        pytest.skip(reason)


def program(name: str) -> str:
    """The path of one of Debian's clients; skips when it is missing."""
    if name in ("xenstore-control", "test-xenstore"):  # the one on PATH is a wrapper that looks for a hypervisor
        try:
            return str(require(name, "xen-utils-4.17"))
        except MissingPackage as error:
            pytest.skip(str(error))
    path = which(name)
    if path is None:
        pytest.skip(f"{name} is missing (Debian package xenstore-utils)")
    return path


def run(daemon: Daemon, line: str, timeout: float = 30.0) -> Result:
    """One command, given as a shell would take it, on this daemon."""
    name, *args = shlex.split(line)
    done = subprocess.run(
        [program(name), *args],
        env=daemon.client_env() | {"LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def transcript(daemon: Daemon) -> list[Result]:
    return [run(daemon, line) for line in COMMANDS]


@contextmanager
def started(kind: type[Daemon]) -> Iterator[Daemon]:
    need(kind)
    with short_run_dir() as run_dir, kind(run_dir) as daemon, restarted_inside(daemon):
        yield daemon


@pytest.fixture(scope="module")
def transcripts() -> tuple[list[Result], list[Result]]:
    """What all the commands did on this daemon, and on C xenstored."""
    with started(OurDaemon) as ours:
        mine = transcript(ours)
    with started(CXenstored) as c:
        return mine, transcript(c)


@pytest.mark.parametrize("number", range(len(COMMANDS)), ids=lambda number: f"{number}-{COMMANDS[number][:60]}")
def test_a_client_does_the_same_on_both_daemons(transcripts: tuple[list[Result], list[Result]], number: int) -> None:
    mine, reference = (results[number] for results in transcripts)
    if COMMANDS[number] in DIFFERENCES:
        assert mine != reference, "they do not differ here: take the entry out of DIFFERENCES"
    else:
        assert mine == reference


def test_every_difference_is_of_a_command_that_is_run() -> None:
    assert set(COMMANDS) >= DIFFERENCES.keys()


def watched(daemon: Daemon) -> list[str]:
    """What xenstore-watch prints while others change the tree; each change waits for the line before."""
    run(daemon, "xenstore-write /w/a 0 /w/b 0")
    changes = [
        "xenstore-write /w/a 1",
        "xenstore-write /w/new/deep 1",
        "xenstore-chmod /w/b r0",
        "xenstore-rm /w/new",
        "xenstore-rm /w",
    ]
    command = [program("xenstore-watch"), "-n", str(len(changes) + 1), "/w"]
    with subprocess.Popen(command, env=daemon.client_env(), stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdout is not None
        watchdog = Timer(3 * PATIENCE, process.kill)
        watchdog.start()
        try:
            lines = [process.stdout.readline()]
            for change in changes:
                assert run(daemon, change).status == 0
                lines.append(process.stdout.readline())
            process.wait(PATIENCE)
        finally:
            watchdog.cancel()
            process.kill()
    return lines


def test_xenstore_watch_prints_the_same_on_both_daemons() -> None:
    with started(OurDaemon) as ours:
        mine = watched(ours)
    with started(CXenstored) as c:
        reference = watched(c)
    assert mine == reference


# ---- Xen's own test program

CASES = [
    "read 1",
    "read 2000",
    "write 1",
    "write 2000",
    "dir",
    "rm node",
    "rm dir",
    "ta empty",
    "ta empty x",
    "ta rmw",
    "ta rmw x",
    "ta err",
]


ITERATIONS = 10 if EACH_REQUEST else 1000
"""Of each case."""


def test_xens_own_test_program_passes_all_its_cases() -> None:
    with started(OurDaemon) as ours:
        result = run(ours, f"test-xenstore -i {ITERATIONS}", timeout=120)
        assert (result.status, result.errors) == (0, "")
        assert [line.partition(":")[0].strip() for line in result.output.splitlines()] == CASES
        assert "Traceback" not in ours.output()


@pytest.mark.slow
def test_xens_own_test_program_passes_at_random() -> None:
    with started(OurDaemon) as ours:
        start = time.monotonic()
        result = run(ours, "test-xenstore -r 10", timeout=60)
        assert result == (0, "", "")
        assert time.monotonic() - start >= 9
        assert "Traceback" not in ours.output()
