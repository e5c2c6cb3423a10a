"""``python -m tests.simulation --seed 42`` tells one day; ``--seeds 0-10000 --jobs 2`` plays many."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path

from tests.simulation.day import Day, draw
from tests.simulation.many import play_many
from tests.simulation.planted import PLANTED
from tests.simulation.shrink import shrink
from tests.simulation.trace import told
from tests.simulation.world import play


def _tell(day: Day, *, small: bool, planted: str = "") -> int:
    """Tell a day as a trace; where something is wrong with it, as small as it can be made."""
    with PLANTED[planted].plant() if planted else nullcontext():
        played = play(day, telling=True)
        if played.discrepancy is not None and small:
            print(f"seed {day.seed}: {played.discrepancy}\nmaking it smaller …", flush=True)
            day = shrink(day, played.discrepancy.rule)
            played = play(day, telling=True)
            print(f"as a plan, for --plan: {day.as_json()}\n")
    print(told(played))
    return 0 if played.discrepancy is None else 1


def main() -> int:
    """Read the arguments and play."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="one day, told as a trace")
    what.add_argument("--seeds", help="A-B: the days of the seeds from A to before B")
    what.add_argument("--plan", help="a file with a day as JSON, as a failure prints it")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (all cores)")
    parser.add_argument("--planted", default="", choices=["", *PLANTED], help="break the product in a known way")
    parser.add_argument("--whole", action="store_true", help="don't make a failing day smaller")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return _tell(draw(arguments.seed), small=not arguments.whole, planted=arguments.planted)
    if arguments.plan:
        day = Day.from_json(Path(arguments.plan).read_text())
        return _tell(day, small=False, planted=arguments.planted)
    first, _, last = arguments.seeds.partition("-")
    failed = play_many(int(first), int(last), jobs=arguments.jobs, planted=arguments.planted)
    return _tell(draw(failed[0]), small=True, planted=arguments.planted) if failed else 0


if __name__ == "__main__":
    sys.exit(main())
