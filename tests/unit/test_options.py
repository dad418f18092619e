"""The command line: all that service files and operators give the C daemon is understood, and what is wrong is said."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.support import examples
from xenstore_logic.trace import SWITCHES
from xenstore_state.quotas import QUOTAS, wire_names
from xenstored.options import INT_MAX, OptionError, Options, parse

QUOTA_OPTIONS = {
    "nodes": ("-E", "--entry-nb"),
    "node-size": ("-S", "--entry-size"),
    "watches": ("-W", "--watch-nb"),
    "transactions": ("-t", "--transaction"),
    "node-permissions": ("-A", "--perm-nb"),
    "path-max": ("-M", "--path-max"),
}


def given_words(*words: str, **environment: str) -> Options:
    """What comes of a command line."""
    return parse(list(words), environment)


def test_without_any_option_it_is_a_daemon_on_a_xen_host() -> None:
    options = given_words()
    assert options == Options()
    assert not options.foreground
    assert options.domain_init
    assert (options.rundir, options.socket) == ("/var/run/xenstored", "/var/run/xenstored/socket")
    assert (options.pid_file, options.trace_file, options.quotas, options.notes) == (None, None, {}, [])


# ---- every option of the C daemon, short and long


@pytest.mark.parametrize("word", ["-N", "--no-fork"])
def test_staying_in_the_foreground(word: str) -> None:
    assert given_words(word).foreground


@pytest.mark.parametrize("word", ["-D", "--no-domain-init"])
def test_serving_sockets_only(word: str) -> None:
    assert not given_words(word).domain_init


def test_short_options_may_be_written_together() -> None:
    options = given_words("-NDE", "7")
    assert (options.foreground, options.domain_init, options.quotas) == (True, False, {"nodes": 7})


@pytest.mark.parametrize("words", [("-F", "f"), ("-Ff",), ("--pid-file", "f"), ("--pid-file=f",)])
def test_the_pid_file(words: tuple[str, ...]) -> None:
    assert given_words(*words).pid_file == "f"


@pytest.mark.parametrize("words", [("-T", "f"), ("-Tf",), ("--trace-file", "f"), ("--trace-file=f",)])
def test_the_trace_file(words: tuple[str, ...]) -> None:
    assert given_words(*words).trace_file == "f"


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("sign", "+-")
def test_switches_of_the_trace(switch: str, sign: str) -> None:
    for words in ((f"--trace-control={sign}{switch}",), ("--trace-control", sign + switch)):
        assert given_words(*words).trace_switches == {switch: sign == "+"}


def test_the_last_of_several_switches_counts() -> None:
    options = given_words("--trace-control=+tdb", "--trace-control=-io", "--trace-control=-tdb")
    assert options.trace_switches == {"tdb": False, "io": False}


@pytest.mark.parametrize("quota", QUOTA_OPTIONS)
def test_the_quotas_that_have_options_of_their_own(quota: str) -> None:
    short, long = QUOTA_OPTIONS[quota]
    for words in (
        (short, "12"),
        (f"{short}12",),
        (long, "12"),
        (f"{long}=12",),
        (short, "012"),
        (short, "1", short, "12"),
    ):
        assert given_words(*words).quotas == {quota: 12}


@pytest.mark.parametrize("quota", QUOTAS)
def test_every_quota_by_its_name(quota: str) -> None:
    for words in (("-Q", f"{quota}=9"), (f"-Q{quota}=9",), ("--quota", f"{quota}=9"), (f"--quota={quota}=9",)):
        assert given_words(*words).quotas == {quota: 9}


def test_the_quota_that_has_a_soft_value() -> None:
    for words in (("-q", "memory=9"), ("--quota-soft", "memory=9"), ("--quota-soft=memory=9",)):
        assert given_words(*words).quotas == {"soft-memory": 9}


def test_several_quotas_at_once() -> None:
    options = given_words("-Q", "nodes=1", "-Q", "memory=2", "-q", "memory=3", "-W", "4")
    assert options.quotas == {"nodes": 1, "memory": 2, "soft-memory": 3, "watches": 4}
    assert set(options.quotas) <= set(wire_names())


@pytest.mark.parametrize(
    "words",
    [
        ("-U",),
        ("--live-update",),
        ("--event", "3"),
        ("--master-domid", "0"),
        ("--priv-domid=0",),
        ("-I",),
        ("-I", "off"),
        ("--internal-db",),
        ("-R",),
        ("--no-recovery",),
    ],
)
def test_what_makes_no_sense_here_is_accepted_and_noted(words: tuple[str, ...]) -> None:
    options = given_words(*words)
    assert len(options.notes) == 1
    assert "no effect" in options.notes[0]
    options.notes.clear()
    assert options == Options()


def test_orphans_event_timeout_and_a_simulated_xen_are_taken_over() -> None:
    assert given_words() == Options()
    assert given_words("-K").keep_orphans
    assert given_words("--keep-orphans").keep_orphans
    for words, seconds in ((("-w", "watch-event=0"), 0), (("--timeout=watch-event=5",), 5)):
        assert given_words(*words).event_seconds == seconds
    assert given_words("--simulated-xen", "/run/xen").simulated_xen == "/run/xen"


@pytest.mark.parametrize("word", ["-H", "--help"])
def test_help_is_printed_and_ends_with_0(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        given_words(word)
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name in itertools.chain(*QUOTA_OPTIONS.values(), ("-N", "-D", "-F", "-T", "-Q", "-q", "-w", "-K", "-U")):
        assert name in text
    for name in ("--trace-control", "--event", "--master-domid", "--priv-domid"):
        assert name in text


def test_what_launches_the_daemon_today_is_understood() -> None:
    options = given_words(
        "--pid-file", "/var/run/xen/xenstored.pid", "-T", "/var/log/xen/xenstored-trace.log", "--entry-nb=2000"
    )
    assert options.pid_file == "/var/run/xen/xenstored.pid"
    assert options.trace_file == "/var/log/xen/xenstored-trace.log"
    assert options.quotas == {"nodes": 2000}
    assert options.notes == []


# ---- where things are


def test_the_environment_says_where_the_socket_is() -> None:
    options = given_words(XENSTORED_RUNDIR="/run/x")
    assert (options.rundir, options.socket) == ("/run/x", "/run/x/socket")
    options = given_words(XENSTORED_RUNDIR="/run/x", XENSTORED_PATH="/tmp/s")
    assert (options.rundir, options.socket) == ("/run/x", "/tmp/s")
    options = given_words(XENSTORED_PATH="/tmp/s")
    assert (options.rundir, options.socket) == ("/var/run/xenstored", "/tmp/s")
    assert given_words(XENSTORED_RUNDIR="", XENSTORED_PATH="") == Options()


def test_relative_directories_are_those_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon's working directory is the root."""
    monkeypatch.chdir("/tmp")
    options = given_words(XENSTORED_RUNDIR="x", XENSTORED_PATH="y/s")
    assert (options.rundir, options.socket) == ("/tmp/x", "/tmp/y/s")


# ---- what is wrong

BAD_NUMBERS = ["", "x", "-1", "1x", "1.5", "0x", str(INT_MAX + 1), "99999999999999999999", "1_000", "\u0663"]


@pytest.mark.parametrize("number", BAD_NUMBERS)
def test_a_number_out_of_range_or_none_at_all_ends_the_start(number: str) -> None:
    for _, long in QUOTA_OPTIONS.values():
        with pytest.raises(OptionError):
            given_words(f"{long}={number}")
    for words in ((f"-Qnodes={number}",), (f"-qmemory={number}",)):
        with pytest.raises(OptionError):
            given_words(*words)


@pytest.mark.parametrize("option", ["--timeout=watch-event", "--event", "--master-domid", "--priv-domid"])
def test_numbers_without_effect_must_be_numbers_too(option: str) -> None:
    for number in BAD_NUMBERS:
        with pytest.raises(OptionError):
            given_words(f"{option}={number}")


@examples(50)
@given(st.integers(-(2**40), 2**40))
def test_numbers_from_0_to_int_max_are_fine(number: int) -> None:
    try:
        assert given_words(f"-E{number}").quotas == {"nodes": number}
        assert 0 <= number <= INT_MAX
    except OptionError:
        assert not 0 <= number <= INT_MAX


def test_a_path_may_have_2048_bytes_at_most() -> None:
    assert given_words("-M", "2048").quotas == {"path-max": 2048}
    with pytest.raises(OptionError, match="2048"):
        given_words("-M", "2049")


@pytest.mark.parametrize(
    "words",
    [
        ("-Q", "nodes"),
        ("-Q", "=5"),
        ("-Q", "bogus=5"),
        ("-Q", "path-length=5"),
        ("-Q", "soft-memory=5", "-q", "nodes=5"),
        ("-q", "nodes=5"),
        ("-w", "watch-event"),
        ("-w", "bogus=5"),
        ("--trace-control=io",),
        ("--trace-control=+bogus",),
        ("--trace-control=",),
    ],
)
def test_a_name_that_is_none_ends_the_start(words: tuple[str, ...]) -> None:
    with pytest.raises(OptionError):
        given_words(*words)


@pytest.mark.parametrize("word", ["-F", "--pid-file", "-T", "-E", "--entry-nb", "-Q", "-w", "--event"])
def test_an_option_without_its_value_ends_the_start(word: str) -> None:
    with pytest.raises(OptionError):
        given_words(word)


@pytest.mark.parametrize("words", [("word",), ("-N", "word"), ("-N", "--", "word"), ("--bogus", "word"), ("",)])
def test_a_word_that_is_no_option_ends_the_start(words: tuple[str, ...]) -> None:
    with pytest.raises(OptionError):
        given_words(*words)


def test_the_end_of_options_is_no_word() -> None:
    assert given_words("-N", "--").foreground


@pytest.mark.parametrize("word", ["-Z", "--bogus", "--bogus=5", "-P", "-V", "--verbose", "-L", "--preserve-local"])
def test_an_unknown_option_is_noted_and_ignored(word: str) -> None:
    options = given_words(word, "-N")
    assert options.foreground
    assert len(options.notes) == 1
    assert word.partition("=")[0] in options.notes[0]


def test_an_unknown_option_among_short_ones_does_not_hide_the_others() -> None:
    """As getopt does it."""
    options = given_words("-NZD")
    assert (options.foreground, options.domain_init) == (True, False)
    assert len(options.notes) == 1


def test_errors_name_what_was_wrong() -> None:
    for words, named in ((("-E", "many"), "many"), (("-Q", "bogus=1"), "bogus"), (("word",), "word")):
        with pytest.raises(OptionError, match=named):
            given_words(*words)


@pytest.mark.parametrize("words", [["-Q--"], ["--quota=--"], ["-F--"], ["-w--"], ["--restart=--"]])
def test_two_dashes_are_no_value(words: list[str]) -> None:
    with pytest.raises(OptionError, match="-- is no value"):
        parse(words, {})
