"""Tries whether missing queues, exchanges and bindings can be created, for ``sidecar check``, under random names.

Only RabbitMQ knows which arguments it accepts, which exchange types it has, and whether a limit is reached. So a queue
with the same arguments is created and deleted at once; if the check is interrupted, it expires. A trial queue is bound
only to a trial exchange, because a binding to a real exchange could take messages away.
"""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from sidecar.core.wire.names import MAX_NAME_BYTES, delay_queue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from aiormq.exceptions import AMQPError

    from sidecar.amqp.channels import Ask
    from sidecar.amqp.topology import Topology

_RESERVED = "amq."
_EXPIRES_MILLISECONDS = 60_000


def is_reserved(name: str) -> bool:
    """Whether RabbitMQ lets nobody create a queue or exchange of this name."""
    return name.startswith(_RESERVED)


async def queue_refusal(ask: Ask, name: str, arguments: dict[str, Any]) -> AMQPError | None:
    """Return why RabbitMQ refuses to create such a queue; None if it creates it.

    Args:
        ask: acts on a channel and returns the refusal, None if there is none.
        name: of the queue that is absent.
        arguments: with which it would be declared.
    """
    async with _queue(ask, name, arguments) as (_, refusal):
        return refusal


async def consumer_refusal(
    ask: Ask, name: str, arguments: dict[str, Any], consumer_arguments: Mapping[str, Any]
) -> AMQPError | None:
    """Return why RabbitMQ refuses to let such a queue be consumed; None if it can be, or can't be created.

    Args:
        ask: acts on a channel and returns the refusal, None if there is none.
        name: of the work queue.
        arguments: of the work queue.
        consumer_arguments: arguments of ``basic.consume``.
    """
    async with _queue(ask, name, arguments) as (trial, no_queue):
        if no_queue is not None:
            return None
        refusal = await ask(lambda channel: channel.basic_consume(trial, _ignore, arguments=dict(consumer_arguments)))
        return _about(name, trial, refusal)


async def exchange_refusal(ask: Ask, name: str, kind: str) -> AMQPError | None:
    """Return why RabbitMQ refuses to create such an exchange; None if it creates it."""
    async with _exchange(ask, name, kind) as (_, refusal):
        return refusal


async def binding_refusal(ask: Ask, topology: Topology, queue: str, arguments: dict[str, Any]) -> AMQPError | None:
    """Return why RabbitMQ refuses such a binding; None if it binds, or if the queue or exchange can't be created.

    Args:
        ask: acts on a channel and returns the refusal, None if there is none.
        topology: with the exchange, its type, routing keys and arguments.
        queue: name of the work queue.
        arguments: of the work queue.
    """
    async with (
        _queue(ask, queue, arguments) as (trial_queue, no_queue),
        _exchange(ask, topology.exchange or "", topology.exchange_type) as (trial_exchange, no_exchange),
    ):
        if no_queue is not None or no_exchange is not None:
            return None
        for key in topology.routing_keys or (queue,):
            refusal = await ask(
                lambda channel, key=key: channel.queue_bind(  # type: ignore[misc]
                    trial_queue, trial_exchange, key, arguments=topology.binding_arguments
                )
            )
            if refusal is not None:
                return refusal
    return None


@asynccontextmanager
async def _queue(ask: Ask, name: str, arguments: dict[str, Any]) -> AsyncIterator[tuple[str, AMQPError | None]]:
    # Named like a delay queue, so that a configure pattern for the sidecar's own queues covers it.
    trial = _named(delay_queue(name, secrets.randbelow(9 * 10**14) + 10**14))
    expiring = {"x-expires": _EXPIRES_MILLISECONDS} | arguments
    refusal = None
    try:
        refusal = await ask(lambda channel: channel.queue_declare(trial, durable=True, arguments=expiring))
        yield trial, _about(name, trial, refusal)
    finally:
        if refusal is None:
            await ask(lambda channel: channel.queue_delete(trial))


@asynccontextmanager
async def _exchange(ask: Ask, name: str, kind: str) -> AsyncIterator[tuple[str, AMQPError | None]]:
    trial = _named(f"{name}.check.{secrets.token_hex(8)}")
    refusal = None
    try:  # an exchange doesn't expire: it is also deleted if the connection was lost while it was declared
        refusal = await ask(
            lambda channel: channel.exchange_declare(exchange=trial, exchange_type=kind, durable=True, auto_delete=True)
        )
        yield trial, _about(name, trial, refusal)
    finally:
        if refusal is None:
            await ask(lambda channel: channel.exchange_delete(trial))


def _about(name: str, trial: str, refusal: AMQPError | None) -> AMQPError | None:
    """Return a refusal with the name of the settings in place of the trial's, which nobody knows."""
    if refusal is not None:
        refusal.args = tuple(text.replace(trial, name) if isinstance(text, str) else text for text in refusal.args)
    return refusal


async def _ignore(_: object) -> None:
    """Do nothing: a trial queue has no messages."""


def _named(name: str) -> str:
    """Return a name, or a short random one if it is too long or reserved by RabbitMQ."""
    fits = len(name.encode()) <= MAX_NAME_BYTES and not is_reserved(name)
    return name if fits else f"sidecar-check-{secrets.token_hex(8)}"
