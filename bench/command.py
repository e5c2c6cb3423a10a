"""How every command of the benchmarks ends."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

from bench.tools import ToolError
from bench.trial import TrialError
from devstack.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable

FAILED = 2
"""The exit status where nothing was measured; 1 is for a bound that isn't met."""


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with the status of `main`; what can't be had, or didn't do its work, is told in words."""
    try:
        status = main()
    except (ToolError, TrialError, StackError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = FAILED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = FAILED
    sys.exit(status)
