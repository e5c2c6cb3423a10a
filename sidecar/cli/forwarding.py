"""``sidecar run`` to another exchange (``SIDECAR_SINK=amqp``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sidecar.amqp.publisher import ReconnectingPublisher
from sidecar.cli.far import FarSide
from sidecar.cli.recipe import forward_config
from sidecar.config.broker import connect_options, sink_topology, sink_urls
from sidecar.observability.tracing import exporters
from sidecar.sinks.amqp import AmqpSink

if TYPE_CHECKING:
    import asyncio

    from structlog.typing import FilteringBoundLogger

    from sidecar.config.settings import Settings
    from sidecar.pipeline.config import PipelineConfig


def far_side(settings: Settings, config: PipelineConfig, log: FilteringBoundLogger) -> FarSide:
    """Return an exchange as the far side.

    Raises:
        ConfigError: files for TLS that can't be used.
    """
    outlet = ReconnectingPublisher(
        sink_urls(settings),
        sink_topology(settings),
        connect_options(settings),
        confirm_timeout_seconds=settings.bulk_timeout,
    )
    if exporters(os.environ):
        log.warning("tracing.off", reason="spans are made of bulk requests; trace headers of messages are passed on")
    return FarSide(
        sink=AmqpSink(config, forward_config(settings), outlet),
        told={"exchange": settings.sink_exchange, "routing_key": settings.sink_routing_key},
        prepare=_nothing_to_prepare,
        close=outlet.close,
    )


async def _nothing_to_prepare(_: asyncio.Event, _tell: object) -> None:
    """The exchange is declared with each connection."""
