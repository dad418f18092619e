"""The cases cover what they must: every operation in every way, every advisory, enough of them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conformance.completeness import ERRORS, missing, seen, table
from tests.conformance.reasons import load_reasons
from tests.conformance.transcript import Case, load, parse_file
from tests.conformance.wire import Op

ADVISORIES = (
    *(38, 57, 72, 115, 206, 233, 272, 322, 323, 324, 325, 326, 330, 349, 352, 353, 354),
    *(414, 415, 416, 417, 418, 419, 420, 421, 425, 440, 481, 483, 484),
)
"""Xen's security advisories that are about a xenstored, or about what it gives to whom."""
WHO = {"c-4.17": "C 4.17", "c-head": "the newest C daemon", "oxenstored": "oxenstored", "ours": "ours"}
"""What reasons call a daemon that the cases know by its label."""
CASES = load()


def test_every_operation_has_cases_for_success_errors_permissions_transactions_and_malformed_payloads() -> None:
    assert set(ERRORS) == {op.name for op in Op}
    assert not missing(CASES), "\n" + table(CASES)


def test_what_is_missing_is_named() -> None:
    assert "READ: E2BIG" not in missing([])
    assert "READ: EACCES" in missing([])
    case = parse_file("case x\n\ndom5 in t READ /a| -> EACCES\ndom0 repeat 0..3 WATCH /a|%d| -> 4 x OK\n")
    assert seen(case) == {
        "READ": {"EACCES", "from a guest", "in a transaction"},
        "WATCH": {"success", "from domain 0"},
    }


def test_every_advisory_has_a_test_that_bears_its_name() -> None:
    names = {case.name for case in CASES}
    for path in Path(__file__).parent.glob("test_xsa_*.py"):
        names |= set(re.findall(r"^def test_(xsa_\d+)", path.read_text(), re.MULTILINE))
    tested = {int(re.split("[-_]", name)[1]) for name in names if name.startswith("xsa")}
    assert set(ADVISORIES) <= tested


def test_there_are_enough_cases_and_each_says_something() -> None:
    assert len(CASES) >= 400
    assert [case.name for case in CASES if not _says_something(case)] == []


def test_every_case_cites_its_source() -> None:
    assert [case.name for case in CASES if not case.cites] == []


def test_every_difference_says_whose_it_is_and_why_and_where_that_can_be_seen() -> None:
    reasons = load_reasons()
    used = {other.reason for case in CASES for step in case.steps for other in step.others}
    assert used == set(reasons)
    assert [reason.name for reason in reasons.values() if not (reason.who and reason.text and reason.source)] == []


def test_a_difference_is_explained_by_a_reason_about_that_daemon() -> None:
    reasons = load_reasons()
    others = ((case.name, other) for case in CASES for step in case.steps for other in step.others)
    wrong = {
        (name, other.label, other.reason) for name, other in others if WHO[other.label] not in reasons[other.reason].who
    }
    assert wrong == set()


def _says_something(case: Case) -> bool:
    return any(step.want for step in case.steps)
