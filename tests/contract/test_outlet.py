"""What publishing to another exchange stands on: the port `sidecar.ports.Outlet`, simulated and real."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sidecar.core.wire.republish import TOKEN_HEADER
from sidecar.errors import BrokerError
from sidecar.ports import OutboundMessage, Unroutable
from tests.builders import long_string, properties

if TYPE_CHECKING:
    from tests.contract.backends import BrokerSide


def copies(queue: str, *tokens: int, exchange: bytes = b"") -> list[OutboundMessage]:
    """Return messages for a queue."""
    made = []
    for number in tokens:
        token = b"%d" % number
        raw = properties([(TOKEN_HEADER, long_string(token))], delivery_mode=2)
        made.append(OutboundMessage(exchange, queue.encode(), raw, b"{}", token))
    return made


def test_each_message_is_told_its_own(broker: BrokerSide) -> None:
    """Confirmed, refused for want of room, or without a queue to go to: three things to be told apart."""

    async def scenario() -> None:
        session = await broker.open(lambda _: None)  # which declares the queue
        full = await broker.fill()
        outlet = broker.outlet()
        mixed = copies(broker.queue, 1) + copies(full, 2) + copies("nobody-has-this", 3) + copies(broker.queue, 4)
        taken, refused, unroutable, also = await outlet.publish(mixed)
        assert (taken, also) == (None, None)
        assert isinstance(refused, str)
        assert not isinstance(refused, Unroutable)
        assert isinstance(unroutable, Unroutable)
        assert "312" in unroutable
        assert outlet.frame_max == 131_072
        await outlet.close()
        await session.close()

    broker.play(scenario)


def test_an_exchange_that_isnt_there_costs_the_connection_and_the_next_call_has_another(broker: BrokerSide) -> None:
    """What became of the messages is unknown then."""

    async def scenario() -> None:
        session = await broker.open(lambda _: None)
        outlet = broker.outlet()
        assert await outlet.check() is None
        with pytest.raises(BrokerError, match="no exchange"):
            await outlet.publish(copies(broker.queue, 1, exchange=b"nobody-has-this"))
        assert await outlet.publish(copies(broker.queue, 2)) == [None]
        await outlet.close()
        await session.close()

    broker.play(scenario)


def test_where_nobody_listens_it_is_told(broker: BrokerSide) -> None:
    """By a look, and by a publish."""

    async def scenario() -> None:
        outlet = broker.outlet(absent=True)
        assert await outlet.check()
        with pytest.raises(BrokerError):
            await outlet.publish(copies("any", 1))
        await outlet.close()

    broker.play(scenario)
