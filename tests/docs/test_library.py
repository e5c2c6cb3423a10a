"""docs/library.md against the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import sidecar
from sidecar import ConsumerSettings
from sidecar.config.settings import PREFIX, Settings
from sidecar.library.verdicts import VERDICTS
from tests.docs.library_table import PAGE, table
from tests.docs.settings_table import in_readme

TEXT = PAGE.read_text(encoding="utf-8")
TESTS = [Path(__file__).parents[1] / name for name in ("integration/test_library.py", "unit/test_library.py")]


def test_the_table_of_settings_is_that_of_the_code() -> None:
    """Every setting with its default and its meaning, and none that isn't there."""
    assert in_readme(TEXT) == table(), "run: python -m tests.docs.library_table"


def test_every_row_against_aio_pika_batch_is_a_test_of_that_name() -> None:
    """Nothing is claimed that isn't shown, and what is shown is told."""
    rows = TEXT.partition("<!-- rows -->")[2].partition("<!-- /rows -->")[0]
    named = set(re.findall(r"`(test_\w+)`", rows))
    there = {name for path in TESTS for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    on_a_broker = set(re.findall(r"^def (test_\w+)", TESTS[0].read_text(), re.MULTILINE))
    assert named <= there
    assert on_a_broker <= named


def test_every_verdict_is_explained() -> None:
    """A row for each, by the name that it is imported by."""
    named = re.findall(r"^\| `([A-Z_]+)` \|", TEXT, re.MULTILINE)
    assert [getattr(sidecar, name) for name in named] == list(VERDICTS.values())


@pytest.mark.parametrize("page", ["library.md", "coming-from.md"])
def test_every_setting_that_is_named_exists(page: str) -> None:
    """Of the sidecar, and of the library where a table says what it is called here."""
    text = (PAGE.parent / page).read_text(encoding="utf-8")
    assert set(re.findall(r"SIDECAR_[A-Z_]+[A-Z]", text)) <= {PREFIX + name.upper() for name in Settings.model_fields}
    own = set(re.findall(r"`((?:amqp|delayed|dead_letter|shutdown)_\w+)`", text))
    assert own <= set(ConsumerSettings.model_fields)


def test_code_can_be_copied() -> None:
    """Each block parses, and what it imports is there."""
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        tree = compile(code, "docs/library.md", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "sidecar":
                assert {alias.name for alias in node.names} <= set(sidecar.__all__)
