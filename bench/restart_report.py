"""Shows what restarts cost: a table, the figures as JSON, and two plots.

For: `bench.restart`.
Guarantees: a goal that is missed is marked; a figure that could not be taken shows why; Xoar's figures, which nobody here
measured, say so.
Does not know: how anything was measured.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.report import TITLES
from bench.restart_plan import ASKED, NOTHING, Downtime, Results, Throughput

GOAL_DOWNTIME_MS: Final = 5.0
GOAL_LOSS: Final = 1.0
"""Per cent, at one restart a second."""
GOAL_PER_REQUEST: Final = 500.0
"""Requests a second."""
XOAR_SLOW_MS: Final = 260.0
XOAR_FAST_MS: Final = 140.0
XOAR_LOSS: Final = {10.0: 8.0, 1.0: 58.0}
"""Per cent of a download's throughput lost by the interval in seconds (Colp et al., SOSP 2011)."""

LEGEND: Final = """\
Downtime is the longest time that a client which never pauses (one read or write in flight) waits for a reply while the
daemon is restarted: median and worst of several restarts, in ms. "nothing" is the same without a restart: what the machine does
to any wait. "kill": `kill -9` of Logic. "planned": Logic ends at the end of a turn and a fork takes over. "slow": the whole
daemon starts again with the code that is installed (`restart slow`). "live update": `xenstore-control live-update` to the same
program. Client and serving process share one core, State and everything else has the other. Under Downtime State may use both while
it makes a new Logic, so that the kernel places that as it would on a host; it is moved to the client's core as soon as its pid is
known. Under Throughput a new Logic begins on State's core; with `per-request` all of the daemon may use both.

Loss is the median of what each stretch with restarts lost against the same client's throughput just before and just after it.
"lost a restart": the sum of all waits of more than 1 ms, divided by the number of restarts; it holds what the machine did, too.
"""


def markdown(results: Results, conditions: dict[str, str], stem: str) -> str:
    """The tables, what they mean, and what failed."""
    parts = [
        "# What a restart costs",
        _verdicts(results),
        f"![downtime]({stem}-downtime.png)\n![throughput]({stem}-throughput.png)",
        "## Downtime",
        _table(
            ("daemon", "nodes", "connections", "watches", "restart", "median ms", "worst ms", "restarts"),
            [_downtime_row(found) for found in results.downtimes],
        ),
        f"Xoar: {XOAR_FAST_MS:g} ms (fast) and {XOAR_SLOW_MS:g} ms (slow), on its authors' machine.",
        "## Throughput against the interval of restarts",
        _table(
            (
                "daemon",
                "nodes",
                "restart",
                "interval",
                "requests/s",
                "alone",
                "loss",
                "lost a restart",
                "restarts",
                "Xoar's loss",
            ),
            [_throughput_row(found) for found in results.throughputs],
        ),
        LEGEND.strip(),
        "\n".join(f"- {note}" for note in (*results.notes, *(f"{k}: {v}" for k, v in conditions.items()))),
    ]
    return "\n\n".join(parts) + "\n"


def _verdicts(results: Results) -> str:
    asked = [d for d in results.downtimes if d.daemon == "ours" and d.load == ASKED and d.kind in {"kill", "planned"}]
    lines = [
        _verdict(f"downtime at {d.load}, {d.kind}", d.failure, d.middle, GOAL_DOWNTIME_MS, "ms")
        for d in asked
        if d.waits
    ]
    for t in results.throughputs:
        if t.daemon == "ours" and t.kind == "planned" and t.rates:
            if t.interval == 1.0:
                lines.append(
                    _verdict(f"throughput lost at one restart a second, {t.load}", t.failure, t.loss, GOAL_LOSS, "%")
                )
            if t.interval == 0.0:
                ok = t.rate >= GOAL_PER_REQUEST
                mark = "ok" if ok else "**SHORT**"
                lines.append(
                    f"a Logic for each request, {t.load}: {t.rate:.0f} requests/s, asked for {GOAL_PER_REQUEST:g}: {mark}"
                )
    return "\n".join(f"- {line}" for line in lines) or "- nothing that a goal is about was measured"


def _verdict(what: str, failure: str, value: float, limit: float, unit: str) -> str:
    mark = "ok" if value <= limit and not failure else f"**SHORT** {failure}".strip()
    return f"{what}: {value:.2f} {unit}, asked for at most {limit:g}: {mark}"


def _downtime_row(found: Downtime) -> tuple[str, ...]:
    load = found.load
    what = (TITLES[found.daemon], f"{load.nodes:,}", f"{load.connections:,}", f"{load.watches:,}", found.kind)
    if not found.waits:
        return (*what, "failed", found.failure, "0")
    count = str(len(found.waits)) + (f", then: {found.failure}" if found.failure else "")
    return (*what, f"{found.middle:.2f}", f"{found.worst:.2f}", count)


def _throughput_row(found: Throughput) -> tuple[str, ...]:
    interval = f"{found.interval:g} s" if found.interval else "each request"
    what = (TITLES[found.daemon], f"{found.load.nodes:,}", found.kind, interval)
    xoar = XOAR_LOSS.get(found.interval)
    beside = f"{xoar:g} %" if xoar is not None else ""
    if not found.rates:
        return (*what, "failed", "", found.failure, "", "0", beside)
    figures = (f"{found.rate:.0f}", f"{median(found.alone):.0f}", f"{found.loss:.2f} %")
    lost = f"{found.waits_ms:.2f} ms" if found.interval else ""
    return (*what, *figures, lost, str(found.restarts), beside)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        head,
        ["---"] * len(head),
        *(tuple(cell.replace("|", "/").replace("\n", " ") for cell in row) for row in rows),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def plain(results: Results, conditions: dict[str, str]) -> dict[str, Any]:
    """Everything, for programs: each wait and each rate."""
    return {
        "conditions": conditions,
        "xoar": {
            "slow_ms": XOAR_SLOW_MS,
            "fast_ms": XOAR_FAST_MS,
            "loss_percent": {str(k): v for k, v in XOAR_LOSS.items()},
        },
        "downtimes": [d._asdict() | {"load": d.load._asdict()} for d in results.downtimes],
        "throughputs": [t._asdict() | {"load": t.load._asdict()} for t in results.throughputs],
        "notes": results.notes,
    }


def failed(results: Results) -> bool:
    """Whether some figure of this project's daemon is missing."""
    failures = [(d.daemon, d.failure) for d in results.downtimes] + [(t.daemon, t.failure) for t in results.throughputs]
    return any(daemon == "ours" and failure for daemon, failure in failures)


# ---- plots


def plots(results: Results, folder: Path, stem: str) -> list[str]:
    """Draws both, as PNG and SVG; what could not be drawn, and why."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an optional part of the project
    except ImportError:
        return ["no plots: matplotlib is not installed (the extra 'bench')"]
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "restart"
    _plot_downtime(results, folder / f"{stem}-downtime")
    _plot_throughput(results, folder / f"{stem}-throughput")
    return []


def _plot_downtime(results: Results, path: Path) -> None:
    figure, axes = _axes("what stands in the daemon (nodes / connections / watches)", "longest wait, ms")
    loads = sorted({found.load for found in results.downtimes})
    places = {load: place for place, load in enumerate(loads)}
    series = sorted({(found.daemon, found.kind) for found in results.downtimes if found.waits})
    for daemon, kind in series:
        found = [d for d in results.downtimes if (d.daemon, d.kind) == (daemon, kind) and d.waits]
        found.sort(key=lambda d: places[d.load])
        where, middles = [places[d.load] for d in found], [d.middle for d in found]
        style = ":" if kind == NOTHING else "-"
        axes.plot(where, middles, style, marker="o", label=f"{TITLES[daemon]}: {kind}")
        axes.vlines(where, middles, [d.worst for d in found], alpha=0.4)
    for level, name in ((XOAR_FAST_MS, "Xoar, fast"), (XOAR_SLOW_MS, "Xoar, slow"), (GOAL_DOWNTIME_MS, "asked for")):
        axes.axhline(level, linestyle="--", linewidth=0.8, color="grey")
        axes.annotate(name, (0, level), fontsize=7, color="grey", va="bottom")
    axes.set_yscale("log")
    axes.set_xticks(list(places.values()), [f"{_short(n)}/{_short(c)}/{_short(w)}" for n, c, w in loads], rotation=30)
    _finish(figure, axes, path)


def _plot_throughput(results: Results, path: Path) -> None:
    figure, axes = _axes("seconds between restarts", "throughput, % of that without restarts")
    for daemon, kind, load in sorted({(t.daemon, t.kind, t.load) for t in results.throughputs}):
        found = [
            t
            for t in results.throughputs
            if (t.daemon, t.kind, t.load) == (daemon, kind, load) and t.rates and t.interval
        ]
        label = f"{TITLES[daemon]}: {kind}, {_short(load.nodes)} nodes"
        axes.plot([t.interval for t in found], [100 - t.loss for t in found], marker="o", label=label)
    axes.plot(
        list(XOAR_LOSS), [100 - loss for loss in XOAR_LOSS.values()], "--", color="grey", marker="x", label="Xoar"
    )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    _finish(figure, axes, path)


def _axes(across: str, up: str) -> tuple[Any, Any]:
    from matplotlib import pyplot  # noqa: PLC0415 - see above

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    return figure, axes


def _finish(figure: Any, axes: Any, path: Path) -> None:
    axes.legend(fontsize=7)
    figure.savefig(path.with_suffix(".png"), dpi=110)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _short(count: int) -> str:
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count // size}{letter}"
    return str(count)
