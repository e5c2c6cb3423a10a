"""``python -m tests.simulation --seed 42`` tells one day; ``--seeds 0-10000 --jobs 2`` plays many."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from tests.simulation.runner import KINDS, Kind, play_many
from tests.simulation.shrink import shrink
from tests.simulation.trace import told

if TYPE_CHECKING:
    from tests.simulation.scenario import Day


def _tell(kind: Kind, day: Day, *, small: bool, planted: str = "") -> int:
    """Tell a day as a trace; where something is wrong with it, as small as it can be made."""
    with kind.planted[planted].plant() if planted else nullcontext():
        played = kind.play(day, telling=True)
        if played.discrepancy is not None and small:
            print(f"seed {day.seed}: {played.discrepancy}\nmaking it smaller …", flush=True)
            day = shrink(day, played.discrepancy.rule, play=kind.play)
            played = kind.play(day, telling=True)
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
    parser.add_argument("--kind", default="elasticsearch", error_policy=KINDS, help="of days: what messages are for")
    bugs = {name: None for kind in KINDS.values() for name in kind.planted}
    parser.add_argument("--planted", default="", error_policy=["", *bugs], help="break the product in a known way")
    parser.add_argument("--whole", action="store_true", help="don't make a failing day smaller")
    arguments = parser.parse_args()
    kind, planted = KINDS[arguments.kind], arguments.planted
    if planted and planted not in kind.planted:
        parser.error(f"{planted} is none of the bugs for {arguments.kind}")
    if arguments.seed is not None:
        return _tell(kind, kind.draw(arguments.seed), small=not arguments.whole, planted=planted)
    if arguments.plan:
        return _tell(kind, kind.read(Path(arguments.plan).read_text()), small=False, planted=planted)
    first, _, last = arguments.seeds.partition("-")
    failed = play_many(int(first), int(last), jobs=arguments.jobs, planted=planted, kind=arguments.kind)
    return _tell(kind, kind.draw(failed[0]), small=True, planted=planted) if failed else 0


if __name__ == "__main__":
    sys.exit(main())
