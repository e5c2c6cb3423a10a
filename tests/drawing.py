"""Shows that a Hypothesis property isn't hollow: which classes of examples its strategies draw.

Each property names the classes that it must draw by ``@pytest.mark.draws("...", ...)``, and calls `drew` with the
class of an example. A property that didn't draw one of its classes often enough fails, after all its examples passed.
``--hypothesis-show-statistics`` prints the share of each.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hypothesis import event, seed
from hypothesis.control import current_build_context

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pytest

LEAST = 2
"""The number of examples in which each class must be drawn: one alone could be chance."""
FURTHER_RUNS = 4
"""How often a property runs again, with other examples, before it counts as hollow.

Which examples Hypothesis draws changes with the constants in all modules that happen to be loaded.
"""


class PublishStats:
    """Counts the examples of one property by class.

    Args:
        expected: the classes that the property must draw.
    """

    current: PublishStats | None = None

    def __init__(self, expected: Iterable[str]) -> None:
        self.expected = list(expected)
        self.counts: Counter[str] = Counter()
        self.examples = 0
        self._example: object = None
        self._drawn: set[str] = set()

    def add(self, kind: str) -> None:
        """Count a class of the present example, once."""
        assert kind in self.expected, f"@pytest.mark.draws doesn't name {kind!r}"
        example = current_build_context().data
        if example is not self._example:
            self._example, self._drawn = example, set()
            self.examples += 1
        if kind not in self._drawn:
            self._drawn.add(kind)
            self.counts[kind] += 1
            event(kind)

    def fault(self) -> str | None:
        """Return why the property is hollow; None if it isn't."""
        if not self.expected:
            return "names no classes of examples that it must draw: mark it with @pytest.mark.draws (tests/drawing.py)"
        rare = [kind for kind in self.expected if self.counts[kind] < LEAST]
        if not rare:
            return None
        counts = ", ".join(f"{kind}: {self.counts[kind]}" for kind in self.expected)
        return f"is hollow: it hardly draws {', '.join(map(repr, rare))} (of {self.examples} examples, {counts})"


def drew(kind: str, happened: object = True) -> None:
    """Note that the present example belongs to a class, if `happened` is true."""
    if happened and PublishStats.current is not None:
        PublishStats.current.add(kind)


def how_many(count: int, what: str) -> str:
    """Return the class of a number of things: none, one or several."""
    return f"{('no', 'one')[count] if count < 2 else 'several'} {what}"


def is_property(item: pytest.Item) -> bool:
    """Tell whether a test draws its examples with Hypothesis."""
    test = getattr(item, "obj", None)
    machine = getattr(getattr(item, "cls", None), "settings", None)
    return getattr(test, "is_hypothesis_test", False) or (machine is not None and item.name == "runTest")


def tally_of(item: pytest.Item) -> PublishStats:
    """Return a tally for the classes that a property names."""
    return PublishStats(kind for mark in item.iter_markers("draws") for kind in mark.args)


@contextmanager
def seeded(item: pytest.Item, number: int) -> Iterator[None]:
    """Have a property draw other examples within the context, for each number the same ones."""
    machine_name = getattr(getattr(item, "cls", None), "__name__", "").removesuffix(".TestCase")
    test: Any = getattr(getattr(item, "module", None), machine_name, None) or getattr(item, "obj", None)
    before = getattr(test, "_hypothesis_internal_use_seed", None)
    try:
        seed(number)(test)
        yield
    finally:
        test._hypothesis_internal_use_seed = before  # `hypothesis.seed` has no way back
