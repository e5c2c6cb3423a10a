"""Chaos with a fixed seed, short; more seeds and more time in full."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import obtain
from tests.faults.chaos import Chaos, Servers, describe, report, start_servers
from tests.faults.plan import make_plan

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

SHORT_SECONDS, SHORT_SEED = 25.0, 152
LONG_SECONDS, LONG_SEEDS = 120.0, (101, 102, 103, 104, 105, 106)


def test_a_short_chaos_adds_up(breakable_broker: Any, breakable_cluster: Any, tmp_path: Path) -> None:
    """Every message is a document or a dead letter as it must be, and each account adds up."""
    plan = make_plan(SHORT_SEED, SHORT_SECONDS, tiny_pool=False)
    print(describe(plan))
    chaos = Chaos(plan, Servers(breakable_broker, breakable_cluster), tmp_path, print)
    chaos.run()
    report(chaos, print)
    assert chaos.verdict.discrepancies == []
    assert sum(chaos.happened.values()) >= 4
    assert chaos.verdict.figures["confirmed messages"] > 0


@pytest.mark.full
@pytest.mark.parametrize("seed", LONG_SEEDS)
def test_a_longer_chaos_adds_up(seed: int, tmp_path: Path) -> None:
    """The same for other seeds, on servers of their own."""
    plan = make_plan(seed, LONG_SECONDS)
    print(describe(plan))
    servers = obtain(lambda: start_servers(plan))
    try:
        chaos = Chaos(plan, servers, tmp_path, print)
        chaos.run()
    finally:
        for server in servers:
            server.close()
    report(chaos, print)
    assert chaos.verdict.discrepancies == []
