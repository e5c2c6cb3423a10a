"""The sidecar against the floor and its peers, on real servers: ``make bench``, or ``python -m bench.compare``.

In each round every program moves the same messages out of a full queue, one program after the other, and the next round
begins with another one. Processor time is what can be relied on; rates are only comparable within a run, and so is
everything as a ratio of one round. Where a bound isn't met, the exit status is 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import command, gauges, programs, tools
from bench.lab import Lab, Load
from bench.trial import Figures, TrialError, measure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.programs import Program

MIB = 1024 * 1024
WARMING = Load(100_000)


class Bound(NamedTuple):
    """What the sidecar must show against another program, in the median of the rounds.

    Attributes:
        other: the program.
        what: in words.
        value: taken of both, and divided.
        at_most: the ratio may be so much; or None.
        at_least: the ratio must be so much; or None.
    """

    other: str
    what: str
    value: Callable[[Figures], float]
    at_most: float | None = None
    at_least: float | None = None

    def met(self, ratio: float) -> bool:
        """Whether a ratio is within it."""
        return (self.at_most is None or ratio <= self.at_most) and (self.at_least is None or ratio >= self.at_least)

    def __str__(self) -> str:
        """Say it in words."""
        limit = f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"
        return f"{self.what}, sidecar / {self.other}: {limit}"


def _cpu(figures: Figures) -> float:
    return figures.pipeline_us


def _rate(figures: Figures) -> float:
    return figures.documents_per_second


def _rabbitmq(figures: Figures) -> float:
    return figures.rabbitmq_us


BOUNDS = (
    Bound("floor", "CPU a document", _cpu, at_most=1.6),
    Bound("pika", "CPU a document", _cpu, at_most=0.5),
    Bound("Bento", "CPU a document", _cpu, at_most=0.125),
    Bound("floor", "documents a second", _rate, at_least=0.9),
    Bound("Bento", "documents a second", _rate, at_least=2.5),
    Bound("floor", "RabbitMQ's CPU a message", _rabbitmq, at_most=1.15),
)
COLUMNS: tuple[tuple[str, Callable[[Figures], float], str], ...] = (
    ("CPU µs/doc", _cpu, ".1f"),
    ("RabbitMQ µs/doc", _rabbitmq, ".1f"),
    ("Elasticsearch µs/doc", lambda figures: figures.elasticsearch_us, ".1f"),
    ("docs/s", _rate, ",.0f"),
    ("peak MiB", lambda figures: figures.peak_bytes / MIB, ".0f"),
)


def spread(values: Sequence[float], form: str) -> str:
    """Return the median and the range of figures."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def rounds(lab: Lab, contenders: Sequence[Program], load: Load, how_many: int) -> dict[str, list[Figures]]:
    """Have each program move the messages in each round; a peer that fails is out, with its reason told.

    Raises:
        TrialError: the sidecar or the floor failed.
    """
    found: dict[str, list[Figures]] = {program.name: [] for program in contenders}
    there = list(contenders)
    for number in range(how_many):
        # Another first one in each round: what comes first finds the servers in another state than what comes last.
        turn = number % len(there)
        for program in there[turn:] + there[:turn]:
            try:
                figures = measure(lab, program, load)
            except TrialError as error:
                if program.name.startswith(("sidecar", "floor")):
                    raise
                print(f"{program.name} is out: {error}", file=sys.stderr)
                there.remove(program)
                found.pop(program.name)
                continue
            found[program.name].append(figures)
            shown = "  ".join(f"{value(figures):{form}} {name}" for name, value, form in COLUMNS)
            print(f"  round {number + 1}  {program.name:<24} {shown}", flush=True)
    return found


def table(found: dict[str, list[Figures]]) -> str:
    """Return all figures as a table: the median of the rounds, and their range."""
    lines = ["| program | " + " | ".join(name for name, _, _ in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for program, figures in found.items():
        cells = [spread([value(one) for one in figures], form) for _, value, form in COLUMNS]
        lines.append(f"| {program} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def judge(found: dict[str, list[Figures]]) -> tuple[str, bool]:
    """Return the ratios against their bounds, as a table, and whether all are met."""
    lines, met = ["| bound | median (range) of the rounds | |", "|---|---|---|"], True
    for bound in BOUNDS:
        if bound.other not in found:
            lines.append(f"| {bound} | | {bound.other} is not there |")
            continue
        pairs = zip(found["sidecar"], found[bound.other], strict=True)
        ratios = [bound.value(ours) / bound.value(theirs) for ours, theirs in pairs]
        good = bound.met(statistics.median(ratios))
        met &= good
        lines.append(f"| {bound} | {spread(ratios, '.3f')} | {'met' if good else '**not met**'} |")
    return "\n".join(lines), met


def main() -> int:
    """Compare and print; return the exit status."""
    options = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    options.add_argument("--messages", type=int, default=50_000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--headers", action="store_true", help="messages with headers, no two alike")
    options.add_argument("--queue-type", choices=("quorum", "classic"), default="quorum")
    options.add_argument("--python", default=sys.executable, help="make the environment of all programs of this one")
    options.add_argument("--floor", type=Path, action="append", default=[], help="another floor, beside ours")
    options.add_argument("--only", action="append", default=[], help="leave out all but these (and the sidecar)")
    chosen = options.parse_args()
    python = tools.python(chosen.python)
    contenders = [programs.sidecar(python), programs.floor(python)]
    contenders += [programs.floor(python, path.resolve()) for path in chosen.floor]
    wanted = set(chosen.only)
    bento = tools.bento() if not wanted or "Bento" in wanted else None
    contenders += programs.peers(python, bento, chosen.queue_type)
    if wanted:
        contenders = [one for one in contenders if one.name == "sidecar" or one.name in wanted]
    with Lab(chosen.queue_type) as lab:
        measure(lab, contenders[0], WARMING)  # Elasticsearch compiles what it does often
        load = Load(chosen.messages, headers=chosen.headers)
        print(f"{load.count:,} messages of {load.body_bytes} bytes, {chosen.rounds} rounds")
        print(f"{tools.describe(python)}; {lab.how}; {gauges.machine()}", flush=True)
        found = rounds(lab, contenders, load, chosen.rounds)
    verdicts, met = judge(found)
    print(f"\n{table(found)}\n\n{verdicts}")
    return 0 if met else 1


if __name__ == "__main__":
    command.run(main)
