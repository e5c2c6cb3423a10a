"""Count the changes of the product that no test without servers finds, and list them."""

from __future__ import annotations

import argparse
import difflib
import fnmatch
import os
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from tests.mutation.coverage_map import CoverageMap, measure
from tests.mutation.mutants import Mutant, generate
from tests.mutation.planted import plant, planted
from tests.mutation.runner import Result, run

if TYPE_CHECKING:
    from collections.abc import Iterable

_ROOT = Path(__file__).parents[2]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", default=["sidecar/*"], help="paths or patterns (default: sidecar/*)")
    parser.add_argument("--planted", action="store_true", help="test the bugs of planted.json, not made ones")
    parser.add_argument("--sample", type=int, metavar="N", help="test N of them, as many of each folder")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of that chance")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one for each core)")
    parser.add_argument("--coverage", type=Path, default=_ROOT / "build/mutants.coverage",
                        help="which test executes which line; measured first if the file isn't there")  # fmt: skip
    return parser.parse_args()


def _chosen(arguments: argparse.Namespace) -> list[Mutant]:
    """Return the mutants to test."""
    if arguments.planted:
        return [plant(_ROOT, bug) for bug in planted()]
    paths = sorted(str(path.relative_to(_ROOT)) for path in _ROOT.glob("sidecar/**/*.py"))
    wanted = [path for path in paths if any(fnmatch.fnmatch(path, pattern) for pattern in arguments.modules)]
    mutants = [mutant for path in wanted for mutant in generate(_ROOT, path)]
    if arguments.sample is None or arguments.sample >= len(mutants):
        return mutants
    return _sample(mutants, arguments.sample, random.Random(arguments.seed))


def _sample(mutants: list[Mutant], count: int, rng: random.Random) -> list[Mutant]:
    """Return as many mutants of each folder, as far as it has them."""
    folders = defaultdict(list)
    for mutant in mutants:
        folders[folder(mutant)].append(mutant)
    chosen: list[Mutant] = []
    for place, name in enumerate(sorted(folders, key=lambda name: len(folders[name]))):
        share = (count - len(chosen)) // (len(folders) - place)
        chosen += rng.sample(folders[name], min(share, len(folders[name])))
    # In no order: whoever ends a run early has a fair sample as well.
    rng.shuffle(chosen)
    return chosen


def folder(mutant: Mutant) -> str:
    """Return the folder of a mutant's module."""
    return mutant.path.rpartition("/")[0]


def table(results: Iterable[Result]) -> str:
    """Return how many mutants were found, by folder."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for result in results:
        for name in (folder(result.mutant), "all"):
            count = counts[name]
            count[0] += 1
            count[1] += result.found
            count[2] += result.outcome == "survived"
            count[3] += result.outcome == "not executed"
    lines = [f"{'folder':<20}{'mutants':>9}{'found':>9}{'survived':>10}{'not executed':>14}{'found':>9}"]
    for name in sorted(counts, key=lambda name: (name == "all", name)):
        total, found, survived, unseen = counts[name]
        lines.append(f"{name:<20}{total:>9}{found:>9}{survived:>10}{unseen:>14}{found / total:>9.1%}")
    return "\n".join(lines)


def difference(mutant: Mutant) -> str:
    """Return what a mutant changes, as a diff."""
    original = (_ROOT / mutant.path).read_text().splitlines()
    lines = difflib.unified_diff(original, mutant.make().splitlines(), mutant.path, str(mutant), lineterm="", n=1)
    return "\n".join(lines)


def main() -> int:
    """Test mutants; the exit status is 1 if a planted bug survives."""
    arguments = _arguments()
    mutants = _chosen(arguments)
    print(f"{len(mutants)} changes, seed {arguments.seed}", flush=True)
    if not arguments.coverage.exists():
        arguments.coverage.parent.mkdir(parents=True, exist_ok=True)
        measure(_ROOT, arguments.coverage)
    covered = CoverageMap(arguments.coverage, _ROOT)
    results = []
    for result in run(_ROOT, mutants, covered, jobs=arguments.jobs):
        results.append(result)
        print(f"{len(results)}: {result.mutant}: {result.outcome} {result.found_by}".rstrip(), flush=True)
    survivors = [result for result in results if not result.found]
    for result in survivors:
        print(f"\n{result.outcome} ({result.tests} tests):\n{difference(result.mutant)}")
    print(f"\n{table(results)}")
    return int(arguments.planted and bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
