"""Edge cases of features, quotas, CONTROL, domains and signals, as far as sockets can see them.

Expected is what the newest C xenstored answers; each test's docstring names the function that decides it there.
Cases of the edge-case table covered here: 42, 44, 47-53, 55, 57, 59, 62, 63, 65, 154.

Left out of the edge-case tests, because they need a guest on a ring (or its existence): 12, 21, 26-29, 35, 41, 43, 45, 46,
54, 58, 60, 61, 64, 66-72, 78, 82, 84-89, 103, 106-110, 112-114, 137, 139-141, 143-147, 156-159, 161; because they are
about a live update: 56, 149-151, 163-165.  Of 13, 31, 34, 42, 75-77, 80, 83, 91, 96, 97, 99, 136, 148 and 155 what a socket can
see is tested.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.conftest import UnderTest, running
from tests.conformance.wire import PATIENCE, Client, Op, strings
from tests.oracle.daemons import Daemon

QUOTAS = {
    "nodes": 1000,
    "watches": 128,
    "outstanding": 20,
    "memory": 2621440,
    "soft-memory": 2097152,
    "transactions": 10,
    "transaction-nodes": 1024,
    "node-permissions": 5,
    "path-max": 2048,
    "node-size": 2048,
}
"""Names in the order in which GET_QUOTA lists them, and defaults."""

ABSENT = 9
"""A domain that does not exist."""

# ---- features


@pytest.mark.parametrize("payload", [b"", b"1"], ids=["empty", "no NUL"])
def test_a_socket_has_every_feature_but_reconnection(client: Client, payload: bytes) -> None:
    """domain.c:do_get_feature"""
    assert client.call(Op.GET_FEATURE, payload) == b"14\0"


def test_the_ring_of_domain_0_has_reconnection_too(client: Client, daemon: UnderTest) -> None:
    assert client.call(Op.GET_FEATURE, b"\0") == (b"15\0" if daemon.is_ours else b"14\0")


def test_features_of_a_domain_that_does_not_exist_are_enoent(client: Client) -> None:
    """domain.c:find_or_alloc_existing_domain"""
    assert client.outcome(Op.GET_FEATURE, strings(ABSENT)) == "ENOENT"
    assert client.outcome(Op.SET_FEATURE, strings(ABSENT, 4)) == "ENOENT"


def test_features_of_an_introduced_domain_are_fixed(client: Client) -> None:
    """domain.c:do_set_feature"""
    if client.call(Op.IS_DOMAIN_INTRODUCED, b"0\0") == b"F\0":
        pytest.skip("this daemon runs without domain 0")
    assert client.outcome(Op.SET_FEATURE, strings(0, 4)) == "EBUSY"


@pytest.mark.parametrize("payload", [b"", b"1\0", strings(1, 2, 3), strings("x", 4), b"1\x004"])
def test_setting_features_takes_a_domid_and_a_value(client: Client, payload: bytes) -> None:
    """domain.c:do_set_feature"""
    assert client.outcome(Op.SET_FEATURE, payload) == "EINVAL"


# ---- quotas


@pytest.fixture
def nodes_quota(client: Client) -> Iterator[str]:
    """The name of a global quota that is put back afterwards."""
    yield "nodes"
    client.call(Op.SET_QUOTA, strings("nodes", QUOTAS["nodes"]))


@pytest.mark.parametrize("payload", [b"", b"nodes"], ids=["empty", "no NUL"])
def test_without_a_name_the_quotas_are_listed(client: Client, payload: bytes) -> None:
    """domain.c:do_get_quota"""
    assert client.call(Op.GET_QUOTA, payload) == strings(" ".join(QUOTAS))


@pytest.mark.parametrize(("name", "value"), QUOTAS.items())
def test_the_default_of_a_quota(client: Client, name: str, value: int) -> None:
    """domain.c:quotas"""
    assert client.call(Op.GET_QUOTA, strings(name)) == strings(value)


@pytest.mark.parametrize("name", ["path-length", "soft-nodes", "permissions", "NODES", "bogus", ""])
def test_an_unknown_quota_is_einval(client: Client, name: str) -> None:
    """domain.c:parse_quota_name"""
    assert client.outcome(Op.GET_QUOTA, strings(name)) == "EINVAL"
    assert client.outcome(Op.SET_QUOTA, strings(name, 5)) == "EINVAL"


@pytest.mark.parametrize(
    ("written", "read"),
    [("1234", b"1234"), ("-2", b"4294967294"), ("x", b"0"), ("", b"0"), ("1x", b"1"), ("5000000000", b"705032704")],
)
def test_a_quota_is_read_as_atoi_does(client: Client, nodes_quota: str, written: str, read: bytes) -> None:
    """domain.c:do_set_quota"""
    assert client.outcome(Op.SET_QUOTA, strings(nodes_quota, written)) == b"OK\0"
    assert client.call(Op.GET_QUOTA, strings(nodes_quota)) == read + b"\0"


@pytest.mark.parametrize("value", ["-1", "4294967295"])
def test_the_largest_number_is_no_quota(client: Client, nodes_quota: str, value: str) -> None:
    """domain.c:do_set_quota"""
    assert client.outcome(Op.SET_QUOTA, strings(nodes_quota, value)) == "EINVAL"
    assert client.call(Op.GET_QUOTA, strings(nodes_quota)) == strings(QUOTAS[nodes_quota])


def test_quotas_of_a_domain_that_does_not_exist_are_enoent(client: Client) -> None:
    """domain.c:do_get_quota, do_set_quota"""
    assert client.outcome(Op.GET_QUOTA, strings(32000, "nodes")) == "ENOENT"
    assert client.outcome(Op.SET_QUOTA, strings(32000, "nodes", 5)) == "ENOENT"


@pytest.mark.parametrize("op", [Op.GET_QUOTA, Op.SET_QUOTA])
def test_quota_requests_with_too_many_strings_are_einval(client: Client, op: Op) -> None:
    """domain.c:do_get_quota, do_set_quota"""
    assert client.outcome(op, strings(0, "nodes", 1, 2)) == "EINVAL"


# ---- CONTROL


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\0",
        b"bogus\0",
        b"bogus\0x\0",
        b"check",
        b"check\0x\0",
        b"help\0x\0",
        b"print\0",
        b"print\0a\0b\0",
        b"log\0bogus\0",
        b"log\0+bogus\0",
        b"logfile\0",
        b"memreport\0a\0b\0",
        b"quota\0set\0nodes\x000\0",
        b"quota\0set\0bogus\x005\0",
        b"quota\0set\0nodes\0",
        b"quota-soft\0set\0nodes\x005\0",
        b"quota-soft\0x\0",
    ],
)
def test_a_control_command_that_is_unknown_or_malformed_is_einval(client: Client, payload: bytes) -> None:
    """control.c:do_control, quota_set"""
    assert client.outcome(Op.CONTROL, payload) == "EINVAL"


@pytest.mark.parametrize("payload", [b"check\0", b"check\0trailing", b"print\0hello\0", b"quota\0set\0nodes\x001000\0"])
def test_a_control_command_that_is_carried_out_answers_ok(client: Client, payload: bytes) -> None:
    """control.c:do_control"""
    assert client.call(Op.CONTROL, payload) == b"OK\0"


def test_control_sets_the_global_quota(client: Client, nodes_quota: str) -> None:
    """control.c:quota_set"""
    client.call(Op.CONTROL, strings("quota", "set", nodes_quota, 1234))
    assert client.call(Op.GET_QUOTA, strings(nodes_quota)) == b"1234\0"


def test_control_shows_the_quotas_as_a_table(client: Client) -> None:
    """control.c:quota_show_current"""
    text = client.call(Op.CONTROL, b"quota\0")
    assert text.startswith(b"Quota settings:\n")
    assert text.endswith(b"\n\0")
    assert b"nodes            :     1000 Nodes per domain\n" in text
    soft = client.call(Op.CONTROL, b"quota-soft\0")
    assert soft == b"Quota settings:\nmemory           :  2097152 Total Xenstore memory per domain\n\0"


def test_quotas_of_an_unknown_domain_are_enoent_in_control(client: Client) -> None:
    """control.c:quota_get"""
    assert client.outcome(Op.CONTROL, b"quota\x0032000\0") == "ENOENT"


def test_help_names_every_command(client: Client) -> None:
    """control.c:do_control_help"""
    text = client.call(Op.CONTROL, b"help\0").decode()
    assert text.endswith("\n\0")
    commands = {line.split()[0] for line in text.rstrip("\0").splitlines()}
    assert commands >= {"check", "log", "logfile", "memreport", "print", "quota", "quota-soft", "live-update", "help"}


# ---- domains


@pytest.mark.parametrize(
    "payload", [b"", strings(ABSENT, 1), strings(ABSENT, 1, 0), strings(ABSENT, 1, "x"), strings("x", 1, 7)]
)
def test_an_introduction_needs_a_domid_a_page_and_a_port(client: Client, payload: bytes) -> None:
    """domain.c:do_introduce"""
    assert client.outcome(Op.INTRODUCE, payload) == "EINVAL"


def test_a_domain_whose_page_cannot_be_mapped_is_not_introduced(client: Client) -> None:
    """domain.c:introduce_domain"""
    assert client.outcome(Op.INTRODUCE, strings(ABSENT, 1, 7)) == "EINVAL"
    assert client.call(Op.IS_DOMAIN_INTRODUCED, strings(ABSENT)) == b"F\0"


@pytest.mark.parametrize("op", [Op.RELEASE, Op.RESUME])
def test_domain_0_is_neither_released_nor_resumed(client: Client, op: Op) -> None:
    """domain.c:onearg_domain"""
    assert client.outcome(op, b"0\0") == "EINVAL"


@pytest.mark.parametrize("op", [Op.RELEASE, Op.RESUME])
def test_a_domain_that_is_not_introduced_is_enoent(client: Client, op: Op) -> None:
    """domain.c:find_connected_domain"""
    assert client.outcome(op, strings(ABSENT)) == "ENOENT"


def test_a_target_needs_two_introduced_domains(client: Client) -> None:
    """domain.c:do_set_target"""
    for pair in ((1, ABSENT), (ABSENT, 1)):
        assert client.outcome(Op.SET_TARGET, strings(*pair)) == "ENOENT"
    for payload in (b"", b"1\0", strings("x", 1)):
        assert client.outcome(Op.SET_TARGET, payload) == "EINVAL"


# ---- signals


def wait_for(path: Path) -> bool:
    """True when the file is there and not empty before patience ends."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if path.exists() and path.stat().st_size:
            return True
        time.sleep(0.02)
    return False


def test_sighup_reopens_the_trace_file(tmp_path: Path) -> None:
    """posix.c"""
    trace, rotated = tmp_path / "trace", tmp_path / "trace.1"
    with running("-T", str(trace)) as daemon, Client(daemon.socket) as client:
        client.write("/before", b"")
        assert wait_for(trace)
        trace.rename(rotated)
        os.kill(daemon.pid, signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE
        while not trace.exists() and time.monotonic() < deadline:
            client.write("/after", b"")
            time.sleep(0.02)
        client.write("/after", b"")
        assert wait_for(trace)
        assert client.read("/before") == b""


def test_sigterm_ends_the_daemon_and_another_can_take_its_place(fresh_daemon: Daemon) -> None:
    """posix.c"""
    with Client(fresh_daemon.socket) as client:
        client.write("/x", b"v")
        pids = fresh_daemon.pids()
        os.kill(fresh_daemon.pid, signal.SIGTERM)
        assert client.is_closed_by_daemon()
    deadline = time.monotonic() + PATIENCE
    while fresh_daemon.running() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not fresh_daemon.running()
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    fresh_daemon.stop()
    fresh_daemon.start()
    with Client(fresh_daemon.socket) as client:
        assert client.read("/tool") == b""
