"""Hypothesis, the same way each time: no deadline on shared machines, and failures that can be replayed.

``TEST_THOROUGHNESS=20`` looks at so many times the examples, and at other ones each time.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.builders import THOROUGHNESS

settings.register_profile(
    "sidecar",
    deadline=None,
    derandomize=THOROUGHNESS == 1,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("sidecar")
