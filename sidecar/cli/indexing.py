"""``sidecar run`` into Elasticsearch."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.cli.far import FarSide
from sidecar.cli.wiring import elasticsearch
from sidecar.core.far import ELASTICSEARCH
from sidecar.core.results import bulk
from sidecar.core.stats.snapshot import NotReady
from sidecar.elasticsearch import templates as index_templates
from sidecar.elasticsearch.client import ElasticsearchClient
from sidecar.errors import SinkError
from sidecar.observability.tracing import open_tracing
from sidecar.sinks.elasticsearch import ElasticsearchSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from sidecar.config.settings import Settings
    from sidecar.elasticsearch.templates import IndexTemplate
    from sidecar.pipeline.config import PipelineConfig

_MAPPINGS_PAUSE_SECONDS = 2.0


def far_side(settings: Settings, config: PipelineConfig, log: FilteringBoundLogger) -> FarSide:
    """Return Elasticsearch as the far side.

    Raises:
        ConfigError: templates or files for TLS that can't be used, several logins.
    """
    templates = (
        index_templates.load(Path(settings.mappings_dir)) if settings.mappings_apply and settings.mappings_dir else []
    )
    sink = ElasticsearchClient(elasticsearch(settings), bulk_path=bulk.path(config.encoder_config.path_index))
    tracing = open_tracing(os.environ, config.encoder_config, log)

    async def close() -> None:
        await sink.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    return FarSide(
        sink=ElasticsearchSink(config, sink, tracing.spans if tracing is not None else None),
        told={"index": settings.index},
        prepare=partial(_install, templates, sink, log),
        close=close,
    )


async def _install(
    templates: list[IndexTemplate],
    sink: ElasticsearchClient,
    log: FilteringBoundLogger,
    stop: asyncio.Event,
    tell: Callable[[NotReady | None], None],
) -> None:
    """Install templates, however long Elasticsearch is away: without them documents would make mappings of their own.

    Raises:
        RefusedTemplateError: it doesn't take one, and never will.
    """
    tries = 0
    while templates and not stop.is_set():
        try:
            for change in await index_templates.when_available(sink, index_templates.apply, templates):
                template = change.template
                log.info("mappings.applied", kind=template.kind, template=template.name, was=change.state)
        except SinkError as error:
            tries += 1
            tell(NotReady(ELASTICSEARCH.waiting, str(error)))
            if tries == 1:
                log.warning("elasticsearch.unreachable", reason=str(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _MAPPINGS_PAUSE_SECONDS)
        else:
            break
    tell(None)
