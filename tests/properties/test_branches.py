"""Each property executes its share of the branches of the module that it is about."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.full
def test_no_property_executes_fewer_branches_than_its_floor() -> None:
    """Run `tests.properties.branches` by itself: it prints the table."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.properties.branches"], capture_output=True, text=True, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout
