"""Plays the conformance cases against a xenstored.

    python -m tests.conformance --socket /run/xenstored/socket --xenbus        in a dom0, against whatever runs there
    python -m tests.conformance --socket S --simulated-xen DIR --like c        a daemon on a simulated Xen
    python -m tests.conformance --daemon ours xsa                              one that is started here; cases named so
    python -m tests.conformance --matrix docs                                  all three that can be started here

Exit status 0: every case ended as it should.  --like names the daemon whose known differences are no failures (strict:
none is allowed).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from tests.conformance.matrix import Results, findings, markdown, page, summary
from tests.conformance.reasons import load_reasons
from tests.conformance.report import failure, write_junit
from tests.conformance.subject import KINDS, UnderTest
from tests.conformance.suite import play_all
from tests.conformance.transcript import LIKE, Case, load
from tests.conformance.verdict import Result, Verdict
from tests.conformance.xenbus import XenbusClient
from tests.oracle.daemons import short_run_dir

TITLES = {"ours": "this project", "c": "C 4.17", "ocaml": "oxenstored 4.17"}
SUMMARY = ("<!-- summary -->\n", "<!-- end of summary -->\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--socket", type=Path, help="a xenstored listens there")
    ring = parser.add_mutually_exclusive_group()
    ring.add_argument("--simulated-xen", type=Path, metavar="DIR", help="the simulated Xen that it runs on")
    ring.add_argument("--xenbus", action="store_true", help="domain 0's ring is reached through the kernel's device")
    parser.add_argument("--daemon", choices=KINDS, action="append", help="start this one (may be given again)")
    parser.add_argument("--like", choices=LIKE, help="the daemon whose differences are expected")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write the results as JUnit XML")
    parser.add_argument(
        "--matrix", type=Path, metavar="DIR", help="write matrix, summary and findings into this folder"
    )
    parser.add_argument("--list", action="store_true", help="say which cases there are, and play none")
    parser.add_argument("cases", nargs="*", metavar="CASE", help="only cases whose file or name contains one of these")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    cases = [case for case in load() if _chosen(case, options.cases)]
    if options.list:
        for case in cases:
            print(f"{case.file}: {case.name}")
        return 0
    results: Results = {}
    if options.socket is not None:
        ring = XenbusClient if options.xenbus else None
        daemon = UnderTest(options.socket, None, options.like or "strict", options.simulated_xen, ring)
        results[str(options.socket)] = play(daemon, cases, str(options.socket))
    else:
        for kind in options.daemon or KINDS:
            missing = KINDS[kind].available()
            if missing is not None:
                print(f"{TITLES[kind]} can't be started: {missing}", file=sys.stderr)
                continue
            with ExitStack() as stack:
                process = stack.enter_context(KINDS[kind](stack.enter_context(short_run_dir())))
                daemon = UnderTest(process.socket, process, options.like or "")
                results[TITLES[kind]] = play(daemon, cases, TITLES[kind])
    if options.junit is not None:
        for number, (name, played) in enumerate(results.items()):
            write_junit(
                options.junit if number == 0 else options.junit.with_stem(f"{options.junit.stem}-{number}"),
                name,
                played,
            )
    if options.matrix is not None:
        write_matrix(options.matrix, results, cases)
    return (
        0 if results and all(result.passed or result.skipped for played in results.values() for result in played) else 1
    )


def _chosen(case: Case, words: list[str]) -> bool:
    return not words or any(word in case.name or word in case.file for word in words)


def play(daemon: UnderTest, cases: list[Case], title: str) -> list[Result]:
    """Plays and prints what went wrong, and how many were not played."""
    results: list[Result] = []
    begin = time.monotonic()
    for result in play_all(daemon, cases):
        results.append(result)
        if not result.passed and not result.skipped:
            print(f"FAIL {failure(result)}", flush=True)
    for reason, count in Counter(result.skipped for result in results if result.skipped).items():
        print(f"SKIP {count} cases: {reason}")
    counts = ", ".join(
        f"{sum(result.verdict is verdict for result in results)} {verdict.name.lower()}" for verdict in Verdict
    )
    failed = sum(not result.passed for result in results)
    print(
        f"{title}: {len(results)} cases, {failed} not as expected ({counts}), {time.monotonic() - begin:.0f} s",
        flush=True,
    )
    return results


def write_matrix(folder: Path, results: Results, cases: list[Case]) -> None:
    """The matrix, the findings, and the summary in the guide."""
    (folder / "conformance-matrix.md").write_text(markdown(results))
    (folder / "conformance-matrix.html").write_text(page(results))
    (folder / "conformance-findings.md").write_text(findings(cases, load_reasons()))
    guide = folder / "conformance.md"
    before, mark, rest = guide.read_text().partition(SUMMARY[0])
    guide.write_text(before + mark + summary(results) + "\n" + SUMMARY[1] + rest.partition(SUMMARY[1])[2])


if __name__ == "__main__":
    sys.exit(main())
