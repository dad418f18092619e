"""CONTROL: what an operator may ask of the daemon while it runs, and what each command leaves in log, files and settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protocol.ops import Op
from tests.model.harness import answer
from xenstore_logic import control
from xenstore_logic.embedded import Embedded


@pytest.fixture
def store() -> Embedded:
    return Embedded()


def asks(store: Embedded, *words: str) -> str:
    """What domain 0 is told: text, or the name of an error."""
    said = answer(store, store.connect(), Op.CONTROL, "".join(f"{word}\0" for word in words).encode())
    return said if isinstance(said, str) else said.decode().removesuffix("\0")


def test_a_check_says_whether_accounts_agree(store: Embedded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert asks(store, "check") == "OK"
    assert caplog.messages.pop().endswith("all accounts agree")
    store.store.tree.owned[5] = 3
    assert asks(store, "check") == "OK"
    assert caplog.records[-1].levelname == "ERROR"
    assert asks(store, "check", "twice") == "EINVAL"


def test_what_is_traced_can_be_chosen_and_is_kept(
    store: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "LIBRARY", str(tmp_path))
    assert asks(store, "logfile", "trace") == "OK"
    assert store.core.trace.active
    asks(store, "print", "first")
    assert asks(store, "log", "-io") == "OK"
    assert "io      : off" in asks(store, "log")
    assert not store.core.trace.active
    assert asks(store, "log", "+io") == "OK"
    assert asks(store, "log", "off") == "OK"
    asks(store, "print", "nowhere")
    assert asks(store, "log", "on") == "OK"
    asks(store, "print", "last")
    lines = (tmp_path / "trace").read_text().splitlines()
    assert [line for line in lines if "control" in line] == ["control: first", "control: last"]
    for words in (("+none",), ("onn",), ("on", "off"), ("",)):
        assert asks(store, "log", *words) == "EINVAL"
    assert asks(store, "logfile", "") == asks(store, "logfile") == asks(store, "logfile", "a", "b") == "EINVAL"


def test_a_trace_file_that_cannot_be_opened_is_in_the_log(
    store: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control, "LIBRARY", str(tmp_path / "none"))
    assert asks(store, "logfile", "trace") == "OK"
    assert caplog.messages == [f"tracing is off: {tmp_path}/none/trace: No such file or directory"]


def test_a_trace_file_that_is_full_ends_the_trace(store: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LIBRARY", "/dev")
    assert asks(store, "logfile", "full") == "OK"
    assert not store.core.trace.active
    assert asks(store, "print", "x") == "OK"


def test_a_memory_report_goes_to_the_log_or_to_a_file(
    store: Embedded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(control, "LIBRARY", str(tmp_path))
    caplog.set_level("INFO")
    assert asks(store, "memreport") == "OK"
    assert caplog.messages[-1].startswith("memreport: nodes 3, watches 0, connections ")
    file = tmp_path / "report"
    assert asks(store, "memreport", str(file)) == asks(store, "memreport", "report") == "OK"
    assert [line.split(",")[0] for line in file.read_text().splitlines()] == ["nodes 3"] * 2
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for where in (tmp_path / "link", tmp_path / "none" / "report", tmp_path):
        assert asks(store, "memreport", str(where)) == "EINVAL"
    assert not (tmp_path / "elsewhere").exists()
    assert asks(store, "memreport", "a", "b") == "EINVAL"


def test_a_live_update_is_refused_in_words(store: Embedded, tmp_path: Path) -> None:
    binary = tmp_path / "xenstored"
    assert asks(store, "live-update", "-f", str(binary)) == "File not accessible."
    binary.write_text("")
    if os.geteuid():
        assert asks(store, "live-update", "-f", str(binary)) == "File not executable."
    binary.chmod(0o755)
    assert "not supported" in asks(store, "live-update", "-f", str(binary))
    assert asks(store, "live-update", "-a") == "No live-update session active."
    for late in (("-c", "x"), ("-s",), ("-s", "-F"), ("-s", "-t", "1"), ("-s", "-t", "1", "-F")):
        assert asks(store, "live-update", *late) == "Not in live-update session."
    for wrong in ((), ("-f",), ("-x",), ("-s", "-t")):
        assert asks(store, "live-update", *wrong) == "EINVAL"


def test_another_logic_takes_over_when_asked(store: Embedded) -> None:
    assert asks(store, "restart", "never") == "EINVAL"
    assert "--no-guardian" in asks(store, "restart", "slow")
    assert not store.core.retiring
    assert asks(store, "restart") == "OK"
    assert store.core.retiring


def test_a_whole_restart_is_an_effect_for_state(store: Embedded) -> None:
    store.core.guarded = True
    number = store.connect()
    assert answer(store, number, Op.CONTROL, b"restart\0slow\0") == b"OK\0"
    assert not store.core.retiring


def test_quotas_are_shown_set_and_counted(store: Embedded) -> None:
    for words in (
        ("set", "nodes", "0"),
        ("set", "none", "1"),
        ("set", "soft-memory", "1"),
        ("set", "nodes"),
        ("x", "y", "z"),
    ):
        assert asks(store, "quota", *words) == "EINVAL", words
    assert asks(store, "quota", "set", "nodes", "77") == "OK"
    assert "nodes            :       77 Nodes per domain\n" in asks(store, "quota")
    assert asks(store, "quota-soft", "set", "memory", "5000") == "OK"
    assert asks(store, "quota-soft", "set", "soft-memory", "1") == "EINVAL"
    assert ":     5000 " in asks(store, "quota-soft")
    assert asks(store, "quota", "4711") == "ENOENT"
    store.connect(5)
    toolstack = store.connect()
    for op, payload in ((Op.WRITE, b"/five\0"), (Op.SET_PERMS, b"/five\0n5\0")):
        assert answer(store, toolstack, op, payload) == b"OK\0"
    assert "nodes            :        1 (max        1)\n" in asks(store, "quota", "5")
    assert "nodes            :        1\n" in asks(store, "quota", "max")
    assert answer(store, toolstack, Op.RM, b"/five\0") == b"OK\0"
    assert "nodes            :        0 (max        1)\n" in asks(store, "quota", "5")
    assert "nodes            :        0\n" in asks(store, "quota", "max", "-r")
    assert asks(store, "quota", "max", "-x") == "EINVAL"


def test_a_policy_of_restarts_is_a_setting(store: Embedded) -> None:
    assert asks(store, "restart-policy") == "on-crash\n"
    assert asks(store, "restart-policy", "every=-1") == "EINVAL"
    assert asks(store, "restart-policy", "after=7") == "OK"
    assert asks(store, "restart-policy") == "after=7\n"
    assert "policy: after=7\n" in asks(store, "restarts")


def test_commands_that_are_none_are_refused(store: Embedded) -> None:
    for words in (
        (),
        ("",),
        ("frobnicate",),
        ("help", "x"),
        ("snapshot",),
        ("snapshot", ""),
        ("snapshots", "x"),
        ("print",),
    ):
        assert asks(store, *words) == "EINVAL", words
    assert all(f"{name:<15}" in asks(store, "help") for name in control.COMMANDS)
