"""The plots of docs/performance.md (`scripts/plots.py`), without the library that draws them."""

from __future__ import annotations

import pytest

from scripts import plots

PAGE = plots.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("plot", plots.PLOTS, ids=lambda plot: plot.name)
def test_each_plot_was_drawn_from_the_table_as_it_is_and_is_shown(plot: plots.Plot) -> None:
    """Whoever changes a figure runs `make plots`."""
    drawn = (plots.FOLDER / f"{plot.name}.svg").read_text(encoding="utf-8")
    assert f"drawn from {plots.digest(plot, PAGE)}" in drawn, "behind its table: make plots"
    assert f"](plots/{plot.name}.svg)" in PAGE


def test_a_table_is_read_by_its_first_numbers() -> None:
    """Ranges and words around them are for people."""
    page = "## Here\n\n| a | b | c |\n|---|---|---|\n| x, 1 | 1,234.5 (1 to 2) | |\n| y | 7% | none |\n\n| other |\n"
    (first, (number, nothing)), (second, (share, _)) = plots.rows(page, "## Here")
    assert (first, number, second, share) == ("x, 1", 1234.5, "y", 7.0)
    assert nothing != nothing  # noqa: PLR0124 - it is no number
    with pytest.raises(ValueError, match="no table"):
        plots.rows(page, "## There")
