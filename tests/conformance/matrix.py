"""Cases x daemons as Markdown and HTML, and the differences between daemons as a page of findings."""

from __future__ import annotations

import html
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from tests.conformance.reasons import Reason
from tests.conformance.transcript import Case, Step, write_step
from tests.conformance.verdict import Result, Verdict

Results = dict[str, list[Result]]
"""By daemon: how each case ended, in the same order for all."""

LEGEND = {
    Verdict.SAME: "answers as the newest C daemon does",
    Verdict.KNOWN: "answers differently in some step, as the case says for this daemon",
    Verdict.WRONG: "answers differently from everything that the case says",
    Verdict.DIED: "dies",
    Verdict.SKIPPED: "not played",
}
TITLE = "Conformance matrix"


def summary(results: Results) -> str:
    """A table for the guide: how many cases of each folder ended how, by daemon."""
    lines = [
        "| cases | " + " | ".join(results) + " |",
        "|---|" + "---|" * len(results),
    ]
    names = list(dict.fromkeys(result.case.file for played in results.values() for result in played))
    for name in names:
        cells = [_count(result for result in played if result.case.file == name) for played in results.values()]
        number = sum(result.case.file == name for result in next(iter(results.values())))
        lines.append(f"| {name.removesuffix('.txt')} ({number}) | " + " | ".join(cells) + " |")
    total = len(next(iter(results.values())))
    lines.append(f"| **all ({total})** | " + " | ".join(f"**{_count(played)}**" for played in results.values()) + " |")
    return "\n".join(lines)


def _count(results: Iterable[Result]) -> str:
    counts = Counter(result.verdict for result in results)
    return ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])


def markdown(results: Results) -> str:
    """The whole matrix."""
    lines = [f"# {TITLE}", "", "Written by `make conformance`; `docs/conformance.md` says how.", ""]
    lines += [f"- `{verdict.value}` {meaning}" for verdict, meaning in LEGEND.items()]
    lines += _advisories(results)
    for name, rows in _by_file(results):
        lines += [
            "",
            f"## [{name}](../tests/conformance/cases/{name}.txt)",
            "",
            "| case | " + " | ".join(results) + " | differs because of |",
        ]
        lines.append("|---|" + "---|" * (len(results) + 1))
        for row in rows:
            marks = " | ".join(f"`{result.verdict.value}`" for result in row)
            lines.append(f"| {row[0].case.name} | {marks} | {', '.join(_reasons(row))} |")
    return "\n".join(lines) + "\n"


def _advisories(results: Results) -> Iterator[str]:
    """A row for each advisory: how the cases that bear its name ended."""
    rows: dict[int, list[tuple[Result, ...]]] = defaultdict(list)
    for row in zip(*results.values(), strict=True):
        if advisory := re.match(r"xsa-(\d+)", row[0].case.name):
            rows[int(advisory[1])].append(row)
    if not rows:
        return
    yield from ["", "## Security advisories", ""]
    yield "Those that are not here need more than requests and replies: `tests/conformance/test_xsa_*.py`."
    yield from ["", "| XSA | " + " | ".join(results) + " | differs because of |", "|---|" + "---|" * (len(results) + 1)]
    for number, found in sorted(rows.items()):
        ends = " | ".join(_count(row[column] for row in found) for column in range(len(results)))
        reasons = dict.fromkeys(reason for row in found for reason in _reasons(row))
        yield f"| {number} | {ends} | {', '.join(reasons)} |"


def page(results: Results) -> str:
    """The whole matrix as HTML; a case's text opens below its name."""
    out = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{TITLE}</title><style>",
        "body{font:14px/1.4 sans-serif;margin:2em auto;max-width:70em}",
        "table{border-collapse:collapse;width:100%}",
        "td,th{border:1px solid #ccc;padding:.2em .5em;text-align:left;vertical-align:top}",
        ".same{background:#dfd}.known{background:#ffd}.wrong{background:#fbb}.died{background:#f88}.skipped{background:#eee}",
        f"</style><h1>{TITLE}</h1><ul>",
        *(
            f"<li><b class={verdict.name.lower()}>{html.escape(verdict.value)}</b> {LEGEND[verdict]}"
            for verdict in LEGEND
        ),
        "</ul>",
    ]
    for name, rows in _by_file(results):
        file = html.escape(f"../tests/conformance/cases/{name}.txt", quote=True)
        out.append(f'<h2><a href="{file}">{html.escape(name)}</a></h2><table><tr><th>case')
        out += [f"<th>{html.escape(daemon)}" for daemon in results]
        out.append("<th>differs because of")
        for row in rows:
            about = html.escape(" ".join(row[0].case.about), quote=True)
            out.append(f'<tr><td title="{about}">{html.escape(row[0].case.name)}')
            out += [f"<td class={result.verdict.name.lower()}>{html.escape(result.verdict.value)}" for result in row]
            out.append(f"<td>{html.escape(', '.join(_reasons(row)))}")
        out.append("</table>")
    return "\n".join(out) + "\n"


def _by_file(results: Results) -> Iterator[tuple[str, list[tuple[Result, ...]]]]:
    files: dict[str, list[tuple[Result, ...]]] = defaultdict(list)
    for row in zip(*results.values(), strict=True):
        files[row[0].case.file.removesuffix(".txt")].append(row)
    yield from files.items()


def _reasons(row: tuple[Result, ...]) -> list[str]:
    return list(dict.fromkeys(reason for result in row for reason in result.reasons()))


# ---- findings


def findings(cases: list[Case], reasons: dict[str, Reason]) -> str:
    """How daemons differ, each reason with its source, an example and the cases that show it."""
    lines = [
        "# Findings",
        "",
        "Where C xenstored 4.17 and oxenstored 4.17 (as Debian ships them) answer differently from the newest C xenstored,",
        "and where this project's daemon does so on purpose. Made from the cases by `make conformance`; each difference is",
        "checked whenever the cases are played against that daemon. In the examples the first answer is the newest C daemon's.",
    ]
    rows = [
        (reason, sum(_names(step, reason.name) for case in cases for step in case.steps)) for reason in reasons.values()
    ]
    lines += ["", "| difference | whose | steps that show it |", "|---|---|---|"]
    lines += [f"| [{reason.name}](#{reason.name}) | {reason.who} | {steps} |" for reason, steps in rows if steps]
    for reason in reasons.values():
        found = [(case, step) for case in cases for step in case.steps if _names(step, reason.name)]
        if not found:  # only some cases were chosen
            continue
        names = list(dict.fromkeys(case.name for case, _ in found))
        lines += ["", f"## {reason.name}", "", f"*{reason.who}.* {reason.text}", ""]
        lines += [f"- Source: {reason.source}"] if reason.source else []
        lines += [f"- Since: {reason.fixed}"] if reason.fixed else []
        lines += [f"- {len(found)} steps of {len(names)} cases: {_some(names)}", "", "```"]
        lines += _example(found, reason.name)
        lines.append("```")
    return "\n".join(lines) + "\n"


def _names(step: Step, reason: str) -> bool:
    return any(other.reason == reason for other in step.others)


def _some(names: list[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _example(found: list[tuple[Case, Step]], reason: str) -> list[str]:
    texts = []
    for _, step in found:
        kept = tuple(other for other in step.others if other.reason == reason)
        texts.append(list(write_step(Step(step.actor, step.verb, step.argument, step.tx, step.want, step.parts, kept))))
    return min(texts, key=lambda text: (max(map(len, text)) > 120, len(text)))
