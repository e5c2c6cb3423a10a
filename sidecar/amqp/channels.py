"""One action on a channel of its own: RabbitMQ closes a channel when it refuses something on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from aiormq.abc import AbstractChannel
from aiormq.exceptions import AMQPError

if TYPE_CHECKING:
    from aiormq.abc import AbstractConnection

Act = Callable[[AbstractChannel], Awaitable[object]]
Ask = Callable[[Act], Awaitable[AMQPError | None]]
"""Acts on a channel of its own and returns the refusal, or None."""


async def refusal_of(connection: AbstractConnection, act: Act) -> AMQPError | None:
    """Act on a new channel; return RabbitMQ's refusal, or None."""
    channel = await connection.channel(publisher_confirms=False)
    try:
        await act(channel)
    except AMQPError as refusal:
        return refusal
    await channel.close()
    return None
