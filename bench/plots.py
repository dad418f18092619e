"""Plots of the scaling curves: how each daemon's cost grows with what stands in it.

For: `bench.__main__`, `python -m bench.plots`.
Guarantees: drawn from the JSON of a run, never from anything else; a figure that was not measured leaves a gap; without
matplotlib (the extra `bench`) there are no plots and a line that says so.
Does not know: how anything was measured.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
COLOURS = {"c": "#1f77b4", "ocaml": "#ff7f0e", "ours": "#2ca02c"}
MARKS = {"c": "s", "ocaml": "^", "ours": "o"}
TITLES = {"c": "C xenstored", "ocaml": "oxenstored", "ours": "ours"}


class Panel(NamedTuple):
    """One coordinate system: which curve, and what its axes are."""

    curve: str
    title: str
    x: str
    y: str


class Sheet(NamedTuple):
    """One file."""

    name: str
    panels: tuple[Panel, ...]


SHEETS = (
    Sheet(
        "connections",
        (
            Panel("idle-read", "READ beside idle connections", "idle connections", "us"),
            Panel("idle-write", "WRITE beside idle connections", "idle connections", "us"),
            Panel("parallel", "parallel READs", "connections", "us a request"),
        ),
    ),
    Sheet(
        "domains",
        (
            Panel("domains-read", "READ beside idle domains", "idle domains", "us"),
            Panel("domains-write", "WRITE beside idle domains", "idle domains", "us"),
        ),
    ),
    Sheet("day", (Panel("day", "a real host's day", "guests on the host", "ms a guest"),)),
    Sheet(
        "watches",
        (
            Panel("watches", "WRITE, watches on one connection", "watches", "us"),
            Panel("spread-watches", "WRITE, 100 watches a connection", "watches", "us"),
            Panel("watches-register", "registering, one connection", "watches", "us a watch"),
            Panel("spread-watches-register", "registering, 100 a connection", "watches", "us a watch"),
            Panel("fanout", "WRITE until the last watcher knows", "watchers of the node", "us"),
        ),
    ),
    Sheet(
        "nodes",
        (
            Panel("transaction-1", "transaction of 1 write", "nodes", "us"),
            Panel("new", "WRITE that creates a node", "nodes", "us"),
            Panel("ls", "xenstore-ls of everything", "nodes", "s"),
            Panel("memory", "memory (PSS)", "nodes", "MB"),
            Panel("memory-reforked", "memory after an idle re-fork", "nodes", "MB"),
        ),
    ),
    Sheet(
        "children",
        (
            Panel("children-create", "creating children of one node", "children", "ms for all"),
            Panel("children-list", "listing them", "children", "us"),
            Panel("children-remove-one", "removing one of them", "children", "us"),
            Panel("children-remove-all", "removing all of them", "children", "ms"),
        ),
    ),
    Sheet("transactions", (Panel("transaction", "transactions", "writes", "us"),)),
)

DECADE = 10
Curves = dict[str, dict[str, list[tuple[float, float]]]]
"""By curve and daemon: (x, y) of each point."""


def curves_of(document: dict[str, Any]) -> Curves:
    """The points of all curves in the JSON of a run."""
    curves: defaultdict[str, defaultdict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in document["rows"]:
        if row["point"] is None:
            continue
        for daemon, cell in row["medians"].items():
            if cell["value"] is not None:
                curves[row["point"]["curve"]][daemon].append((row["point"]["x"], cell["value"]))
    return {curve: {name: sorted(points) for name, points in by.items()} for curve, by in curves.items()}


def plot(record: Path, folder: Path) -> str:
    """Draws all sheets, each as SVG and PNG; what was done, as a sentence."""
    try:
        import matplotlib  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        return 'no plots: matplotlib is not installed (the extra "bench")'
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "xoarstore"  # the same figures give the same file
    curves = curves_of(json.loads(record.read_text()))
    drawn = [sheet for sheet in SHEETS if any(panel.curve in curves for panel in sheet.panels)]
    for sheet in drawn:
        _draw(sheet, curves, [folder / f"{sheet.name}.{kind}" for kind in ("svg", "png")])
    return f"plots, as SVG and PNG: {', '.join(sheet.name for sheet in drawn) or 'none, there are no curves'}"


def _draw(sheet: Sheet, curves: Curves, targets: Sequence[Path]) -> None:
    from matplotlib import pyplot  # noqa: PLC0415 - see above

    panels = [panel for panel in sheet.panels if panel.curve in curves]
    columns = min(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4.2 * columns, 3.2 * lines), squeeze=False)
    spare = [axis for line in axes for axis in line]
    for panel, axis in zip(panels, spare, strict=False):
        for daemon, points in curves[panel.curve].items():
            x, y = zip(*points, strict=True)
            axis.plot(x, y, marker=MARKS[daemon], color=COLOURS[daemon], label=TITLES[daemon])
        figures = [y for points in curves[panel.curve].values() for _, y in points]
        axis.set_xscale("symlog", linthresh=1)
        axis.set_yscale("log")
        axis.set_ylim(min(figures) / 2, max(max(figures) * 2, min(figures) * DECADE))  # flat is to look flat
        axis.set(title=panel.title, xlabel=panel.x, ylabel=panel.y)
        axis.grid(True, which="major", alpha=0.3)
    for axis in spare[len(panels) :]:
        axis.set_axis_off()
    spare[0].legend()
    figure.tight_layout()
    for target in targets:
        figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else {"Software": None})
    pyplot.close(figure)


def main(argv: Sequence[str]) -> int:
    record = Path(argv[0]) if argv else RESULTS / "latest.json"
    print(plot(record, record.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
