"""Mutants: what is changed, which tests try a change, and what is said of it. Planted bugs fit the code of today."""

from __future__ import annotations

import ast
import sqlite3
import subprocess
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from tests.mutation.coverage_map import CoverageMap
from tests.mutation.mutants import Mutant, changes_of_arguments, compiles, deleted_statements
from tests.mutation.planted import Planted, StaleBugError, plant, planted
from tests.mutation.runner import run

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
MODULE = dedent("""\
    LIMIT = 3

    def add(left, right, *, most=LIMIT):
        total = left + right
        return min(
            total,
            most,
        )

    def unused(value):
        return add(value, 1, most=2)
    """)
TEST = dedent("""\
    from sidecar.sums import add

    def test_small():
        assert add(1, 1) == 2

    def test_ends():
        assert add(1, 5) == 3
    """)


@pytest.mark.parametrize("bug", planted(), ids=lambda bug: bug.id)
def test_a_planted_bug_fits_the_code_of_today(bug: Planted) -> None:
    """A bug replaces a text that its module has exactly once, and Python can read the result."""
    mutant = plant(ROOT, bug)
    assert compiles(mutant.make())
    assert mutant.make() != (ROOT / bug.file).read_text()


def test_a_bug_that_no_longer_fits_names_itself(tmp_path: Path) -> None:
    """The error says which bug has to be written anew, and how often its text was found."""
    (tmp_path / "module.py").write_text("a = 1\na = 1\n")
    with pytest.raises(StaleBugError, match=r"the-bug: module\.py has its text 2 times"):
        plant(tmp_path, Planted("the-bug", "module.py", "a = 1", "a = 2", "harm"))


def test_each_statement_and_each_keyword_is_left_out_once() -> None:
    """Only statements within functions are deleted; keyword arguments are left out in front, in the middle and last."""
    source = "x = f()\ndef g():\n    y = f(1, a=1, b=2, c=3)\n    y += 1\n    f(only=1)\n"
    tree = ast.parse(source)
    deleted = [mutant.make().splitlines()[2:] for mutant in deleted_statements("m.py", source, tree)]
    assert [lines.index("    pass") for lines in deleted] == [0, 1, 2]
    shorter = [
        mutant.make().splitlines()[mutant.line - 1].strip() for mutant in changes_of_arguments("m.py", source, tree)
    ]
    assert shorter == ["y = f(1, b=2, c=3)", "y = f(1, a=1, c=3)", "y = f(1, a=1, b=2)", "f()"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of one module with two functions, one of them tested."""
    files = {
        "sidecar/__init__.py": "",
        "sidecar/sums.py": MODULE,
        "tests/test_sums.py": TEST,
        "pyproject.toml": "[tool.pytest.ini_options]\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    return tmp_path


@pytest.fixture
def covered(project: Path) -> CoverageMap:
    """What coverage.py would write: both tests execute `add`, and nobody `unused`."""
    data = project / "coverage"
    with sqlite3.connect(data) as database:
        database.executescript(
            "create table file (id, path); create table context (id, context);"
            "create table arc (file_id, context_id, fromno, tono);"
        )
        database.execute("insert into file values (1, ?)", (str(project / "sidecar/sums.py"),))
        for number, test in enumerate(("test_small", "test_ends")):
            database.execute("insert into context values (?, ?)", (number, f"tests/test_sums.py::{test}|run"))
            for line in (4, 5):
                database.execute("insert into arc values (1, ?, ?, ?)", (number, -1, line))
        database.execute("insert into arc values (1, 0, 5, -1)")
    database.close()
    return CoverageMap(data, project)


def _replace(project: Path, line: int, old: str, new: str) -> Mutant:
    source = (project / "sidecar/sums.py").read_text()
    make: Callable[[], str] = lambda: source.replace(old, new)  # noqa: E731 - it is short
    return Mutant("sidecar/sums.py", f"{old} {new}", line, line, make)


def test_a_mutant_is_found_by_the_tests_that_execute_its_statement(project: Path, covered: CoverageMap) -> None:
    """A change that a test notices is found; what Python can't read is left out; the module is as it was afterwards."""
    mutants = [
        _replace(project, 7, "most,\n", "most + 1,\n"),  # a line that coverage.py doesn't name, of a statement it does
        _replace(project, 6, "total,\n", "total + 0,\n"),
        _replace(project, 4, "left + right", "left +"),
        _replace(project, 11, "most=2", "most=1"),
        _replace(project, 1, "LIMIT = 3", "LIMIT = 4"),
    ]
    results = list(run(project, mutants, covered, jobs=1))
    assert [(result.outcome, result.found_by.rpartition("::")[2], result.tests) for result in results] == [
        ("found", "test_ends", 2),
        ("survived", "", 2),
        ("not executed", "", 0),
        ("found", "test_ends", 2),
    ]
    assert (project / "sidecar/sums.py").read_text() == MODULE
