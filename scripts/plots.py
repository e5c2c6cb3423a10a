#!/usr/bin/env python3
"""The plots of docs/performance.md, drawn from its own tables; run by ``make plots``.

The page is the one place where figures stand. Each plot carries a digest of what it was drawn from, so that a test can
tell one that is behind its table.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
FOLDER = ROOT / "docs" / "plots"
_NUMBER = re.compile(r"-?[\d,]*\.?\d+")
_OURS, _THEIRS, _SECOND = "#0f766e", "#94a3b8", "#b45309"

Rows = list[tuple[str, list[float]]]
"""Of a table: what stands in the first column, and the first number in each of the others."""


class Plot(NamedTuple):
    """A plot.

    Attributes:
        name: of its file.
        above: the line of the page that its table follows.
        draw: draws the rows.
    """

    name: str
    above: str
    draw: Callable[[Axes, Rows], None]


def rows(page: str, above: str) -> Rows:
    """Return the first table behind a line that begins so.

    Raises:
        ValueError: there is no such line or no table.
    """
    lines = page.splitlines()
    at = next((number for number, line in enumerate(lines) if line.startswith(above)), None)
    first = next((number for number in range(at or 0, len(lines)) if lines[number].startswith("|")), None)
    if at is None or first is None:
        raise ValueError(f"{PAGE.name} has no table behind {above!r}")
    found = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        found.append((name, [_value(cell) for cell in cells]))
    return found


def _value(cell: str) -> float:
    number = _NUMBER.search(cell)
    return float(number.group().replace(",", "")) if number else float("nan")


def digest(plot: Plot, page: str) -> str:
    """Return what tells whether a plot was drawn from the table as it is."""
    return hashlib.sha256(repr((plot.name, rows(page, plot.above))).encode()).hexdigest()[:16]


def first_number(name: str) -> float:
    """Return the number in the name of a row."""
    return _value(name)


# Plots ---------------------------------------------------------------------------------------------------------------


def _peers(axes: Axes, table: Rows) -> None:
    names = [name for name, _ in table][::-1]
    values = [cells[0] for _, cells in table][::-1]
    bars = axes.barh(names, values, color=[_OURS if name == "sidecar" else _THEIRS for name in names])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set(xlabel="processor time of the pipeline, µs a document")


def _costs(axes: Axes, table: Rows) -> None:
    """Draw what each process takes for a document, by the number in the names of the rows."""
    sizes = [first_number(name) for name, _ in table]
    for label, column, color in (("sidecar", 0, _OURS), ("RabbitMQ", 1, _THEIRS), ("Elasticsearch", 2, _SECOND)):
        axes.plot(sizes, [cells[column] for _, cells in table], marker="o", color=color, label=label)
    axes.set(xscale="log", ylabel="µs of processor time a document")
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.minorticks_off()
    axes.legend(frameon=False)


def _batches(axes: Axes, table: Rows) -> None:
    _costs(axes, table)
    axes.set(xlabel="documents in a batch", ylim=(0, None))


def _bodies(axes: Axes, table: Rows) -> None:
    _costs(axes, table)
    axes.set(xlabel="bytes of a body", yscale="log")
    axes.set_yticks([10, 100, 1000], ["10", "100", "1,000"])
    axes.minorticks_off()


def _backlog(axes: Axes, table: Rows) -> None:
    counts = [first_number(name) for name, _ in table]
    axes.plot(counts, [cells[4] for _, cells in table], marker="o", color=_OURS, label="at most")
    axes.plot(counts, [cells[5] for _, cells in table], marker="o", color=_THEIRS, label="at the start")
    axes.set(xscale="log", xlabel="messages in the queue", ylabel="resident memory, MiB", ylim=(0, 100))
    axes.set_xticks(counts, [f"{count:,.0f}" for count in counts])
    axes.minorticks_off()
    axes.legend(frameon=False)


def _sidecars(axes: Axes, table: Rows) -> None:
    counts = [first_number(name) for name, _ in table]
    bars = axes.bar(counts, [cells[3] for _, cells in table], color=_OURS, width=0.6)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.set(xlabel="sidecars on one queue", ylabel="documents a second")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xticks(counts)


def _templates(axes: Axes, table: Rows) -> None:
    names = [name.replace("`", "") for name, _ in table][::-1]
    before, now = ([cells[column] for _, cells in table][::-1] for column in (1, 2))
    places = range(len(names))
    axes.barh([place + 0.2 for place in places], before, height=0.38, color=_THEIRS, label="by the message")
    axes.barh([place - 0.2 for place in places], now, height=0.38, color=_OURS, label="as columns")
    axes.set_yticks(list(places), names)
    axes.set(xlabel="µs that a document costs more than without templates")
    axes.legend(frameon=False)


def _latency(axes: Axes, table: Rows) -> None:
    loads = [first_number(name) for name, _ in table]
    for label, column, color in (("half of all", 1, _OURS), ("99 of 100", 2, _SECOND)):
        axes.plot(loads, [cells[column] for _, cells in table], marker="o", color=color, label=label)
    axes.set(xlabel="load, % of capacity", ylabel="ms from publish to ack", ylim=(0, None), xlim=(0, 100))
    axes.set_xticks(loads)
    axes.legend(frameon=False)


PLOTS = (
    Plot("peers", "CPython 3.12.1, 200,000 messages", _peers),
    Plot("sidecars", "**Several sidecars on one queue**", _sidecars),
    Plot("batches", "**Batches:**", _batches),
    Plot("backlog", "**Backlog**", _backlog),
    Plot("bodies", "**Bodies**", _bodies),
    Plot("templates", "### Templates", _templates),
    Plot("latency", "## Latency", _latency),
)


def main() -> int:
    """Draw all plots; return the exit status."""
    import matplotlib as mpl  # here, for tests read tables without it
    from matplotlib.figure import Figure

    # The same bytes for the same table, and text that stays text.
    mpl.rcParams |= {"svg.hashsalt": "sidecar", "svg.fonttype": "none", "font.size": 10}
    page = PAGE.read_text(encoding="utf-8")
    FOLDER.mkdir(exist_ok=True)
    for plot in PLOTS:
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        axes = figure.subplots()
        plot.draw(axes, rows(page, plot.above))
        axes.spines[["top", "right"]].set_visible(False)
        told = {"Date": None, "Creator": None, "Description": f"drawn from {digest(plot, page)}"}
        figure.savefig(FOLDER / f"{plot.name}.svg", metadata=told)
        print(f"docs/plots/{plot.name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
