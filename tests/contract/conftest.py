"""The two sides of each contract: simulated in virtual time, and real."""

from __future__ import annotations

import pytest

from tests.contract.backends import BrokerSide, RealBroker, RealSink, SimulatedBroker, SimulatedSink, SinkSide

SIDES = ["simulated", "real"]


@pytest.fixture(params=SIDES)
def broker(request: pytest.FixtureRequest) -> BrokerSide:
    """A broker with a queue of this test's own."""
    if request.param == "simulated":
        return SimulatedBroker()
    return RealBroker(request.getfixturevalue("rabbitmq").url)


@pytest.fixture(params=SIDES)
def sink(request: pytest.FixtureRequest) -> SinkSide:
    """An Elasticsearch with an index of this test's own, whose field ``n`` is a ``long``."""
    if request.param == "simulated":
        return SimulatedSink()
    return RealSink(request.getfixturevalue("elasticsearch").url)
