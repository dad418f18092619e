"""Small parts of the client: where the daemon is, how long to wait for another try, how values look as text."""

import subprocess
import sys
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.client import StoreUnavailable, find_store
from protocol.client.escapes import escape, unescape
from protocol.client.retry import ATTEMPTS, FIRST_DELAY, LONGEST_DELAY, delays

SOCKET = "/var/run/xenstored/socket"


def found(environ: dict[str, str], existing: Collection[str] = ()) -> str:
    return find_store(environ, existing.__contains__)


# Where the daemon is


def test_xenstored_path_wins_whatever_exists() -> None:
    environ = {"XENSTORED_PATH": "/x/there", "XENSTORED_RUNDIR": "/run/elsewhere"}
    assert found(environ, {SOCKET}) == "/x/there"


@pytest.mark.parametrize("run_dir", ["/run/x", "/run/x/"])
def test_the_run_directory_holds_the_socket_whatever_exists(run_dir: str) -> None:
    assert found({"XENSTORED_RUNDIR": run_dir}, {SOCKET, "/dev/xen/xenbus"}) == "/run/x/socket"


def test_empty_variables_count_as_unset() -> None:
    assert found({"XENSTORED_PATH": "", "XENSTORED_RUNDIR": ""}, {SOCKET}) == SOCKET


def test_without_variables_it_is_the_first_place_that_exists() -> None:
    places = [SOCKET, "/dev/xen/xenbus", "/proc/xen/xenbus"]
    while places:
        assert found({}, places) == places[0]
        places.pop(0)


def test_when_there_is_nothing_the_error_names_the_places() -> None:
    with pytest.raises(StoreUnavailable, match=r"/var/run/xenstored/socket, /dev/xen/xenbus.*XENSTORED_PATH"):
        found({})


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENSTORED_PATH", "/from/environment")
    assert find_store() == "/from/environment"


# How long to wait


def test_there_is_one_delay_between_tries_and_then_an_end() -> None:
    waits = list(delays(5))
    assert len(waits) == 5
    assert waits[-1] is None
    assert None not in waits[:-1]


def test_no_delay_exceeds_a_bound_that_doubles() -> None:
    bound = FIRST_DELAY
    for delay in list(delays(ATTEMPTS))[:-1]:
        assert delay is not None
        assert 0 <= delay <= bound
        bound = min(2 * bound, LONGEST_DELAY)


def test_all_tries_together_wait_for_three_seconds_at_most() -> None:
    assert sum(delay or 0 for delay in delays(ATTEMPTS)) < 3


# How values look


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"plain ~ text", "plain ~ text"),
        (b"tab\tnl\ncr\r", "tab\\tnl\\ncr\\r"),
        (b"back\\slash", "back\\\\slash"),
        (b"\0\x01\x07", "\\000\\001\\007"),
        (b"\x08\x1f\x7f\x80\xff", "\\x08\\x1f\\x7f\\x80\\xff"),
        (b'"quoted"', '"quoted"'),
        (b"[^]", "[^]"),
    ],
)
def test_what_cannot_be_printed_is_escaped(value: bytes, text: str) -> None:
    assert escape(value) == text


@given(st.binary())
def test_escaped_values_are_printable_and_can_be_restored(value: bytes) -> None:
    text = escape(value)
    assert text.isascii()
    assert text.isprintable()
    assert unescape(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("\\x41\\x4z", b"A\x04z"),
        ("\\101\\0\\08\\7", b"A\0\x008\x07"),
        ('\\q\\e\\"', b'qe"'),
        ("é", "é".encode()),
        ("\\é", "é".encode()),
        ("\\\n", b"\n"),
        ("", b""),
    ],
)
def test_more_is_understood_than_is_written(text: str, value: bytes) -> None:
    assert unescape(text) == value


@pytest.mark.parametrize("text", ["\\", "a\\\\\\", "\\x", "\\xg", "\\400", "\\777"])
def test_incomplete_escapes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an escape sequence"):
        unescape(text)


def test_the_shell_command_starts_without_trio() -> None:
    program = "import sys, protocol.client.cli; sys.exit('trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
