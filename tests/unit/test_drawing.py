"""`tests.drawing`: a property that draws examples of one kind alone fails."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import pytest_runtest_call
from tests.drawing import FURTHER_RUNS, drew


class Item:
    """A collected property, as far as the hook looks at it."""

    def __init__(self, numbers: st.SearchStrategy[int], *classes: str) -> None:
        @settings(max_examples=20, derandomize=True, database=None)
        @given(numbers)
        def property_of_numbers(number: int) -> None:
            drew("even" if number % 2 == 0 else "odd")

        self.name = "property_of_numbers"
        self.obj = property_of_numbers
        self.runs = 0
        self._classes = classes

    def iter_markers(self, name: str) -> list[Any]:
        """Return the marks of a name: all that there are."""
        return [getattr(pytest.mark, name)(*self._classes).mark]

    def runtest(self) -> None:
        """Run it."""
        self.runs += 1
        self.obj()


def run(item: Any) -> None:
    """Run a property as pytest does."""
    with contextmanager(pytest_runtest_call)(item):  # which ends the hook also after an exception
        item.runtest()


def test_a_property_passes_that_draws_what_it_names() -> None:
    """It runs once."""
    item = Item(st.integers(0, 9), "even", "odd")
    run(item)
    assert item.runs == 1


@pytest.mark.parametrize(
    ("numbers", "classes", "says"),
    [
        (st.integers(0, 9).map(lambda number: 2 * number), ("even", "odd"), "hardly draws 'odd'"),
        (st.integers(0, 9), (), "doesn't name"),
        (st.integers(0, 9), ("even",), "doesn't name 'odd'"),
    ],
)
def test_a_property_fails_that_is_hollow_or_names_no_classes(
    numbers: st.SearchStrategy[int], classes: tuple[str, ...], says: str
) -> None:
    """After some runs with other examples; a class that isn't named could be a mistyped one."""
    item = Item(numbers, *classes)
    with pytest.raises((AssertionError, pytest.fail.Exception), match=says):
        run(item)
    assert item.runs == (1 + FURTHER_RUNS if len(classes) == 2 else 1)


def test_a_property_without_a_call_names_no_classes() -> None:
    """The mark is asked for, with the place to read about it."""
    item = Item(st.integers(0, 9))
    item.obj = given(st.integers())(lambda number: None)
    with pytest.raises(pytest.fail.Exception, match="names no classes of examples"):
        run(item)
