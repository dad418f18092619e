"""Which build of the daemon is measured: found out by asking its interpreter, and the one that then runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import interpreter
from bench.interpreter import NoBuild, build_of, chosen
from tests.oracle.build import ROOT
from tests.oracle.daemons import PYTHON, OurDaemon, short_run_dir


def test_a_build_tells_its_version_and_where_it_stands() -> None:
    build = build_of(sys.executable)
    assert build.version == ".".join(map(str, sys.version_info[:3]))
    assert Path(build.where).is_dir()
    assert build.name in build.describe() or build.ahead_of_time


def test_what_is_compiled_makes_the_difference() -> None:
    build = build_of(sys.executable)
    helpers = ("recovery_box._journal", "recovery_box._lanes", "recovery_box._clone")
    assert build._replace(compiled=helpers).name == "plain"
    assert build._replace(compiled=helpers[1:]).name == "plain without compiled helpers"
    assert build._replace(compiled=(*helpers, "xenstore_state.tree")).name == "compiled"


def test_an_interpreter_without_the_daemon_is_refused() -> None:
    with pytest.raises(NoBuild):
        build_of("/bin/false")
    with pytest.raises(NoBuild):
        build_of("/no/such/python")


def test_the_named_interpreter_runs_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON, sys.executable)
    assert chosen().python == Path(sys.executable)
    with short_run_dir() as run_dir, OurDaemon(run_dir) as daemon:
        command = Path(f"/proc/{daemon.pid}/cmdline").read_bytes().split(b"\0")
    assert command[:2] == [os.fsencode(sys.executable), b"-P"]


def test_an_environment_with_a_compiled_build_is_chosen_by_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    link = tmp_path / "python"
    link.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    link.chmod(0o755)
    monkeypatch.setattr(interpreter, "COMPILED", link)
    monkeypatch.delenv(PYTHON, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # what is chosen is put there
    assert chosen().python == link
    assert os.environ[PYTHON] == str(link)


def test_a_module_can_be_run_with_what_is_installed() -> None:
    command = [sys.executable, "-P", str(ROOT / "bench" / "launch.py"), "bench.restart", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    assert "What a restart costs" in done.stdout
