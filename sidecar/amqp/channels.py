"""One action on a channel of its own: RabbitMQ closes a channel when it refuses something on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiormq.abc import AbstractChannel
from aiormq.exceptions import (
    AMQPError,
    ChannelClosed,
    ConnectionCommandInvalid,
    ConnectionNotAllowed,
    ConnectionNotImplemented,
)

if TYPE_CHECKING:
    from aiormq.abc import AbstractConnection

Act = Callable[[AbstractChannel], Awaitable[object]]
Ask = Callable[[Act], Awaitable[AMQPError | None]]
"""Acts on a channel of its own and returns the refusal, or None."""

REFUSALS = (ChannelClosed, ConnectionCommandInvalid, ConnectionNotAllowed, ConnectionNotImplemented)
"""How RabbitMQ refuses a method: it closes the channel, or with some codes the connection."""


async def refusal_of(connection: AbstractConnection, act: Act) -> AMQPError | None:
    """Act on a new channel; return RabbitMQ's refusal, or None.

    Raises:
        AMQPError, OSError, RuntimeError, CancelledError: the connection was lost (`sidecar.amqp.connection.FAILURES`).
    """
    channel = await connection.channel(publisher_confirms=False)
    try:
        await act(channel)
    except REFUSALS as refusal:
        return refusal
    await channel.close()
    return None
