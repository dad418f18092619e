"""The examples in the documentation run as they stand there, and do what is said about them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import protocol.client
import recovery_box
from tests.oracle.build import ROOT
from tests.oracle.daemons import RESTART_POLICY, OurDaemon, short_run_dir
from tests.oracle.restarting import restarted_inside


@pytest.fixture
def daemon() -> Iterator[OurDaemon]:
    with short_run_dir() as folder, OurDaemon(folder / "run", sockets_only=True) as started, restarted_inside(started):
        yield started


def fenced(file: str, language: str = "python") -> list[str]:
    """The fenced pieces of a document in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / file).read_text(), re.MULTILINE | re.DOTALL)


def indented(text: str | None) -> list[str]:
    """The programs in a docstring: its indented pieces that import something."""
    pieces = re.findall(r"((?:^ {4}.*\n|^\n)+)", text or "", re.MULTILINE)
    return [textwrap.dedent(piece).strip() + "\n" for piece in pieces if "import " in piece]


def run(program: str, **environment: str) -> list[str]:
    """The lines that a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_readmes_program(daemon: OurDaemon) -> None:
    (program,) = fenced("README.md")
    assert run(program, XENSTORED_PATH=str(daemon.socket)) == ["b'value'", "/example"]
    assert run("from protocol.client import Client; print(Client().read('/example/name'))", **path(daemon)) == [
        "b'thing'"
    ]


def path(daemon: OurDaemon) -> dict[str, str]:
    return {"XENSTORED_PATH": str(daemon.socket)}


def test_the_clients_programs(daemon: OurDaemon) -> None:
    blocking, for_trio = indented(protocol.client.__doc__)
    assert run(blocking, **path(daemon)) == ["b'value'", "/example"]
    assert run(for_trio, **path(daemon)) == ["b'value'", "/example"]
    assert run("from protocol.client import Client; print(Client().read('/example/count'))", **path(daemon)) == ["b'2'"]


def test_the_core_embedded() -> None:
    (program,) = fenced("docs/architecture.md")
    reply, effects, nothing = run(program)
    assert reply.endswith("OK\\x00'")
    assert "/hello" in effects
    assert nothing == "{}"


def test_the_recovery_boxs_programs(tmp_path: Path) -> None:
    journal, lanes = indented(recovery_box.__doc__)
    program = (journal + lanes).replace("PATH", repr(str(tmp_path / "box")))
    assert run(program) == ["1498500", "b'hello'"]


def shell(daemon: OurDaemon, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env=daemon.client_env(),
    )


def test_the_readmes_minute(daemon: OurDaemon) -> None:
    """Each command of the tour prints what the README shows."""
    if not shutil.which("xenstore-read"):
        pytest.skip("needs the package xenstore-utils")
    text = (ROOT / "README.md").read_text()
    tour = text[text.index("In one terminal") : text.index("and the daemon's terminal says")]
    steps = re.findall(r"^    \$ (.*)\n((?:^    (?!\$).*\n)*)", tour, re.MULTILINE)
    assert len(steps) >= 6
    run_dir = daemon.socket.parent
    for command, output in steps:
        wanted = textwrap.dedent(output)
        here = command.replace("/tmp/xoarstore-0", str(run_dir)).replace(".venv/bin/python", sys.executable)
        done = shell(daemon, here)
        while RESTART_POLICY and "No such process" in done.stderr:  # that Logic has just gone by itself
            done = shell(daemon, here)
        assert (done.stdout, done.returncode) == (wanted, 0), command
