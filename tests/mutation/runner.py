"""Tests mutants: each in a copy of the project, by the tests that execute what it changes."""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tests.mutation.coverage_map import NO_SERVERS
from tests.mutation.mutants import compiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tests.mutation.coverage_map import CoverageMap
    from tests.mutation.mutants import Mutant

_FEW: Final = 40
"""So many tests are tried first: most mutants are found by them, and few files have to be imported."""
_TIMEOUT_SECONDS: Final = 600.0
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)
_PASSED, _NOTHING_RAN = 0, 5


class Result(NamedTuple):
    """What became of one mutant.

    Attributes:
        mutant: which.
        outcome: ``found``, ``timeout`` (it never ends: found as well), ``survived``, or ``not executed`` by any test.
        found_by: the first test that failed.
        tests: how many tests execute what it changes.
    """

    mutant: Mutant
    outcome: str
    found_by: str = ""
    tests: int = 0

    @property
    def found(self) -> bool:
        """Whether a test noticed it."""
        return self.outcome in {"found", "timeout"}


def copy_of(root: Path, folder: Path) -> Path:
    """Copy what git knows of the project, so that a mutant disturbs nobody."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True).stdout
    for name in names.decode().split("\0"):
        if name and (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, folder / name)
    return folder


def run(root: Path, mutants: Sequence[Mutant], covered: CoverageMap, *, jobs: int) -> Iterator[Result]:
    """Test mutants in so many processes, and yield each result as it comes."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for number in range(jobs):
            copies.put(copy_of(root, Path(folder) / str(number)))

        def test(mutant: Mutant) -> Result | None:
            copy = copies.get()
            try:
                return _test(copy, mutant, covered.tests(mutant))
            finally:
                copies.put(copy)

        yield from filter(None, pool.map(test, mutants))


def _test(copy: Path, mutant: Mutant, tests: list[str]) -> Result | None:
    """Test one mutant; None if Python can't read it."""
    source = mutant.make()
    if not compiles(source):
        return None
    if not tests:
        return Result(mutant, "not executed")
    module = copy / mutant.path
    original = module.read_text()
    module.write_text(source)
    try:
        for part in filter(None, (tests[:_FEW], tests[_FEW:])):
            if (found_by := _failing(copy, part)) is not None:
                return Result(mutant, "found" if found_by else "timeout", found_by, len(tests))
    finally:
        module.write_text(original)
    return Result(mutant, "survived", tests=len(tests))


def _failing(copy: Path, tests: Iterable[str]) -> str | None:
    """Return the first test that fails; "" if they don't end; None if none fails."""
    chosen = copy / ".mutation-tests"
    chosen.write_text("\n".join(tests))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *NO_SERVERS, f"@{chosen}"]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "CI": ""}
    # A session of its own: what a mutant leaves running is ended with it.
    process = subprocess.Popen(
        command, cwd=copy, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return ""
    if process.returncode in {_PASSED, _NOTHING_RAN}:
        return None
    match = _FAILED.search(output)
    return match[1] if match else output.strip().rsplit("\n", 1)[-1] or f"exit status {process.returncode}"
