"""How what a document costs grows, on real servers: ``python -m bench.growth``.

With the size of bodies and of batches, with correlation keys and templates, with several sidecars on one queue, and
with the length of the backlog. ``--only`` takes some of these.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, NamedTuple

from bench import command, gauges, programs, tools
from bench.compare import COLUMNS, MIB, WARMING, spread
from bench.lab import Lab, Load
from bench.trial import Figures, measure

if TYPE_CHECKING:
    from collections.abc import Mapping

KINDS = ("bodies", "batches", "recipes", "sidecars", "backlog")
BODIES = ((100, 50_000), (420, 50_000), (1_000, 50_000), (10_000, 10_000), (100_000, 1_500))
BATCHES = (100, 250, 500, 1_000, 2_000, 5_000)
RECIPES: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("as it is", {}),
    ("id from a header", {"SIDECAR_ID": "{header.tenant}-{message_id}"}),
    ("routing from a header", {"SIDECAR_ROUTING": "{header.tenant}"}),
    ("a field added from a header", {"SIDECAR_FIELDS": '{"source": "{header.source}"}'}),
    ("id from the body", {"SIDECAR_ID": "{body.id}"}),
    ("100 correlation keys of a header", {"SIDECAR_BATCH_KEY": "{header.tenant}"}),
    ("coalescing: latest", {"SIDECAR_BATCH_COALESCE": "latest"}),
)  # fmt: skip
MOST_SIDECARS = 4
BACKLOGS = (10_000, 30_000, 100_000, 300_000, 1_000_000)


class Case(NamedTuple):
    """One row: its name, what is moved, with which settings, by how many sidecars."""

    name: str
    load: Load
    settings: Mapping[str, str]
    sidecars: int = 1


def cases(kind: str, most: int) -> list[Case]:
    """Return the rows of a table; no backlog is longer than `most` messages."""
    usual = Load(min(50_000, most))
    if kind == "bodies":
        return [Case(f"{size:,} bytes", Load(min(count, most), size), {}) for size, count in BODIES]
    if kind == "batches":
        return [Case(f"batches of {items:,}", usual, {"SIDECAR_BATCH_MAX_ITEMS": str(items)}) for items in BATCHES]
    if kind == "recipes":
        return [Case(name, usual._replace(headers=True), settings) for name, settings in RECIPES]
    if kind == "sidecars":
        load = Load(min(100_000, most))
        return [Case(f"{count} sidecar" + "s" * (count > 1), load, {}, count) for count in range(1, MOST_SIDECARS + 1)]
    return [Case(f"{count:,} messages", Load(count), {}) for count in BACKLOGS if count <= most]


def main() -> int:
    """Measure and print; return the exit status."""
    options = argparse.ArgumentParser(prog="python -m bench.growth", description=__doc__)
    options.add_argument("--most", type=int, default=100_000, help="messages, in the longest backlog")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--queue-type", choices=("quorum", "classic"), default="quorum")
    options.add_argument("--python", default=sys.executable)
    options.add_argument("--only", action="append", choices=KINDS)
    chosen = options.parse_args()
    python = tools.python(chosen.python)
    with Lab(chosen.queue_type) as lab:
        print(f"{tools.describe(python)}; {lab.how}; {gauges.machine()}; {chosen.rounds} rounds")
        measure(lab, programs.sidecar(python), WARMING)
        for kind in chosen.only or KINDS:
            rows = cases(kind, chosen.most)
            found: dict[str, list[Figures]] = {case.name: [] for case in rows}
            for _ in range(chosen.rounds if kind != "backlog" else 1):
                for case in rows:
                    program = programs.sidecar(python, settings=case.settings)
                    found[case.name].append(measure(lab, program, case.load, copies=case.sidecars))
            print(f"\n{_table(kind, found)}", flush=True)
    return 0


def _table(kind: str, found: dict[str, list[Figures]]) -> str:
    columns = (*COLUMNS, ("MiB at the start", lambda figures: figures.started_bytes / MIB, ".0f"))
    lines = [f"| {kind} | " + " | ".join(name for name, _, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, figures in found.items():
        cells = [spread([value(one) for one in figures], form) for _, value, form in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main)
