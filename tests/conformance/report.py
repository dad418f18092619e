"""Results as text: what went wrong in a case, JUnit XML for machines."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path

from tests.conformance.player import Played
from tests.conformance.transcript import Answer, write_step
from tests.conformance.verdict import Result


def failure(result: Result) -> str:
    """Every wrong step, with what was expected (-) and what came (+)."""
    lines = [f"{result.case.file}: {result.case.name}"]
    for played in result.wrong:
        lines += _step(played)
    if result.error:
        lines.append(f"  {result.error}")
    if result.died:
        lines.append("  the daemon died")
    return "\n".join(lines)


def _step(played: Played) -> Iterable[str]:
    yield f"  line {played.step.line}: {next(write_step(played.step)).partition('  -> ')[0].rstrip()}"
    if played.expected.label:
        yield f"      ({played.expected.label}: {played.expected.reason})"
    for actor in sorted(played.expected.answer.keys() | played.got.keys()):
        yield from _messages(actor, played.expected.answer, played.got)


def _messages(actor: str, wanted: Answer, got: Answer) -> Iterable[str]:
    want, came = wanted.get(actor, []), got.get(actor, [])
    if want == came:
        return
    yield from (f"    - {actor} {message}" for message in want or ["nothing"])
    yield from (f"    + {actor} {message}" for message in came or ["nothing"])


def write_junit(path: Path, name: str, results: list[Result]) -> None:
    """JUnit's XML: one suite, one test a case."""
    failures = sum(not result.passed for result in results)
    skipped = sum(bool(result.skipped) for result in results)
    suite = ET.Element(
        "testsuite",
        name=name,
        tests=str(len(results)),
        failures=str(failures),
        skipped=str(skipped),
        errors="0",
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        case = ET.SubElement(
            suite,
            "testcase",
            name=result.case.name,
            classname=result.case.file.removesuffix(".txt").replace("/", "."),
            time=f"{result.seconds:.3f}",
        )
        if result.skipped:
            ET.SubElement(case, "skipped", message=result.skipped)
        elif not result.passed:
            text = failure(result)
            ET.SubElement(case, "failure", message=text.splitlines()[-1].strip()).text = text
        elif result.known:
            ET.SubElement(case, "system-out").text = "differs as expected: " + ", ".join(result.reasons())
    ET.indent(suite)
    ET.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)
