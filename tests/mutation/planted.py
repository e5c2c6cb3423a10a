"""Bugs that people planted who hadn't read the tests: changes of text that stand in ``planted.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from tests.mutation.mutants import Mutant

_FILE = Path(__file__).with_name("planted.json")


class Planted(NamedTuple):
    """One bug.

    Attributes:
        id: its name.
        file: the module, from the project's folder.
        old: the text that it replaces, which the module has exactly once.
        new: what stands there instead.
        harm: what a user suffers from it.
    """

    id: str
    file: str
    old: str
    new: str
    harm: str


class StaleBugError(Exception):
    """The text that a bug replaces isn't there, or not only once: the module was changed."""


def planted() -> list[Planted]:
    """Read all bugs."""
    return [Planted(**entry) for entry in json.loads(_FILE.read_text())]


def plant(root: Path, bug: Planted) -> Mutant:
    """Return the module with the bug in it.

    Raises:
        StaleBugError: write the bug anew, for the module as it is today.
    """
    source = (root / bug.file).read_text()
    if source.count(bug.old) != 1:
        raise StaleBugError(f"{bug.id}: {bug.file} has its text {source.count(bug.old)} times; write it anew")
    line = source[: source.index(bug.old)].count("\n") + 1
    last_line = line + bug.old.rstrip("\n").count("\n")
    return Mutant(bug.file, bug.id, line, last_line, lambda: source.replace(bug.old, bug.new))
