"""Which test executes which line of the product, measured once by coverage.py."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import closing
from functools import cache
from typing import TYPE_CHECKING, Final

from tests.mutation.mutants import Statements

if TYPE_CHECKING:
    from pathlib import Path

    from tests.mutation.mutants import Mutant

SUITES: Final = ("tests/unit", "tests/properties", "tests/pipeline", "tests/simulation", "tests/docs")
APART: Final = ("tests/simulation/test_mutants.py", "tests/unit/test_mutation.py")
"""They change the product themselves."""
NO_SERVERS: Final = ("-m", "not server and not full")


def measure(root: Path, data_file: Path) -> None:
    """Run the suites without servers once, and keep in a file which test executed which line.

    Raises:
        subprocess.CalledProcessError: a test fails.
    """
    subprocess.run(
        [
            sys.executable, "-m", "pytest", *SUITES, *NO_SERVERS, "-q", "-n", "auto", "--dist", "loadfile",
            "--cov=sidecar", "--cov-branch", "--cov-context=test", "--cov-report=", "-p", "no:cacheprovider",
            *(f"--ignore={path}" for path in APART),
        ],
        cwd=root,
        env={**os.environ, "COVERAGE_FILE": str(data_file)},
        check=True,
    )  # fmt: skip


class CoverageMap:
    """Knows the tests that execute a line.

    Args:
        data_file: what coverage.py wrote, with one context for each test.
        root: the project that was measured.
    """

    def __init__(self, data_file: Path, root: Path) -> None:
        self._tests: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        self._lines_of_test: Counter[str] = Counter()
        self._statements = cache(lambda path: Statements((root / path).read_text()))
        with closing(sqlite3.connect(data_file)) as database:
            rows = database.execute(
                "select distinct file.path, context.context, arc.tono from arc join file on file.id = arc.file_id "
                "join context on context.id = arc.context_id where arc.tono > 0"
            )
            for path, context, line in rows:
                test, _, _phase = context.rpartition("|")
                if test:
                    self._tests[os.path.relpath(path, root)][line].add(test)
                    self._lines_of_test[test] += 1

    def tests(self, mutant: Mutant) -> list[str]:
        """Return the tests that execute what a mutant changes, those first that execute the least else.

        What runs when the module is imported is executed by each test of the module.
        """
        statements = self._statements(mutant.path)
        executed = self._tests.get(mutant.path, {})
        found = set().union(*(executed.get(line, ()) for line in statements.lines(mutant)))
        if statements.at_import(mutant):
            found = found.union(*executed.values())
        return sorted(found, key=lambda test: (self._lines_of_test[test], test))
