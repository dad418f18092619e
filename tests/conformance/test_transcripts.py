"""The form of the cases: notation, grammar, reasons."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conformance.notation import NotationError, parse, parse_raw, show, write, write_raw
from tests.conformance.reasons import load_reasons
from tests.conformance.transcript import (
    Answer,
    Case,
    Other,
    Step,
    TranscriptError,
    agrees,
    load,
    parse_file,
    write_case,
)

CASES = load()


@given(st.binary(max_size=300) | st.text("ab| \\\n.->{}", max_size=40).map(lambda text: text.encode()))
def test_bytes_are_read_as_they_are_written(data: bytes) -> None:
    text = write(data)
    assert parse(text) == data
    assert text == text.strip()
    assert "\n" not in text
    assert " ->" not in text


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=4))
def test_raw_bytes_are_read_as_they_are_written(pieces: list[bytes]) -> None:
    assert parse_raw(write_raw(pieces)) == pieces


def test_the_notation_has_runs_escapes_and_headers() -> None:
    assert parse(r"/a|\||\\|\{3*x}y\x20\n") == b"/a\0|\0\\\0xxxy \n"
    assert parse(r"\{2*a|}") == b"a\0a\0"
    assert parse_raw("<READ 7 0 2>ab + <20 1 0xff 0>") == [
        bytes.fromhex("02000000 07000000 00000000 02000000") + b"ab",
        bytes.fromhex("14000000 01000000 ff000000 00000000"),
    ]
    assert show(b"x" * 4096) == r"\{4096*x}"
    assert show(bytes(range(33, 91)) * 5).endswith("...290:7f699312aa")
    for wrong in ("\\", "\\q", "\\x1"):
        with pytest.raises(NotationError):
            parse(wrong)


EXAMPLE = """\
# a comment
case an-example
  What it shows.
  cites: xenstore.txt; XSA-1
  root: /g/1
  after: SET_QUOTA nodes|1000|
  alone

toolstack WRITE /g/1|
dom0 TRANSACTION_START |       -> = <t>|
dom0 in t READ /g/1|           -> =
dom0 WRITE /g/1|x
  dom0 event /g/1|w|
  dom0 OK
  dom5 event /g/1|w|
  oxenstored (reply-first):
    dom0 OK
    dom0 event /g/1|w|
  c: -> ENOENT
  ours (dies): -> nothing
dom0 pipeline
  > READ /a|
  > GET_DOMAIN_PATH 1|
  dom0 ENOENT
  dom0 = /local/domain/1|
"""


def test_a_case_is_read() -> None:
    (case,) = parse_file(EXAMPLE)
    assert (case.name, case.about, case.cites) == ("an-example", ["What it shows."], ["xenstore.txt", "XSA-1"])
    assert (case.root, case.after, case.alone) == ("/g/1", ["SET_QUOTA nodes|1000|"], True)
    steps = [replace(step, line=0) for step in case.steps]
    assert steps == [
        Step("toolstack", "WRITE", "/g/1|"),
        Step("dom0", "TRANSACTION_START", "|", want={"dom0": ["= <t>|"]}),
        Step("dom0", "READ", "/g/1|", "t", want={"dom0": ["="]}),
        Step(
            "dom0",
            "WRITE",
            "/g/1|x",
            want={"dom0": ["event /g/1|w|", "OK"], "dom5": ["event /g/1|w|"]},
            others=(
                Other("oxenstored", "reply-first", {"dom0": ["OK", "event /g/1|w|"]}),
                Other("c", "", {"dom0": ["ENOENT"]}),
                Other("ours", "dies", {}),
            ),
        ),
        Step(
            "dom0",
            "pipeline",
            parts=("READ /a|", "GET_DOMAIN_PATH 1|"),
            want={"dom0": ["ENOENT", "= /local/domain/1|"]},
        ),
    ]


def test_a_case_is_written_as_it_is_read() -> None:
    for case in CASES:
        (again,) = parse_file(write_case(case))
        assert _without_lines(again) == _without_lines(case)


def _without_lines(case: Case) -> Case:
    return replace(case, file="", steps=[replace(step, line=0) for step in case.steps])


@pytest.mark.parametrize(
    "text",
    [
        "dom0 READ /a|",  # no case
        "case x\n\nnobody READ /a|",
        "case x\n\ndom0",
        "case x\n\n  dom0 OK",
        "case x\n\ndom0 READ /a|\n    dom0 OK",
        "case x\n\ndom0 READ /a|\n  dom0",
    ],
)
def test_what_is_no_transcript_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(TranscriptError, match=r"^f:\d+: "):
        parse_file(text, "f")


def test_a_daemon_is_held_to_what_is_said_of_it_in_particular() -> None:
    step = parse_file(EXAMPLE)[0].steps[3]
    assert step.expected(("c-4.17", "c")).answer == {"dom0": ["ENOENT"]}
    assert step.expected(("oxenstored",)).reason == "reply-first"
    assert step.expected(("c-head",)) == Other("", "", step.want or {})


def test_answers_agree_loosely_only_where_the_case_says_so() -> None:
    def one(message: str) -> Answer:
        return {"dom0": [message]}

    assert agrees(one("ENOENT"), one("ENOENT"))
    assert not agrees(one("ENOENT"), one("EINVAL"))
    assert agrees(one("ENOENT"), one("an error"))
    assert not agrees(one("OK"), one("an error"))
    assert not agrees(one("= E"), one("an error"))
    assert agrees(one("= nodes :  3 (max 10...282:b4a3"), one("~ = nodes : 17 (max 9...281:ffff"))
    assert not agrees(one("= nodes : 3"), one("~ = watches : 3"))
    assert agrees(one("= 5"), one("anything"))
    assert not agrees(one("ENOENT"), {"dom1": ["ENOENT"]})
    assert not agrees(one("ENOENT"), {})


def test_every_reason_is_explained_and_used() -> None:
    used = {other.reason for case in CASES for step in case.steps for other in step.others}
    assert used == set(load_reasons())
    for reason in load_reasons().values():
        assert reason.text
        assert reason.who


def test_no_two_cases_have_a_name_in_common() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
