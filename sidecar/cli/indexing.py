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
from sidecar.core import bulk
from sidecar.core.far import ELASTICSEARCH
from sidecar.core.state import Unready
from sidecar.elastic import mappings
from sidecar.elastic.sink import ElasticSink
from sidecar.errors import SinkError
from sidecar.indexing import Indexing
from sidecar.ops.tracing import open_tracing

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from sidecar.elastic.mappings import Template
    from sidecar.plan import Plan
    from sidecar.settings import Settings

_MAPPINGS_PAUSE_SECONDS = 2.0


def far_side(settings: Settings, planned: Plan, log: FilteringBoundLogger) -> FarSide:
    """Return Elasticsearch as the far side.

    Raises:
        ConfigError: templates or files for TLS that can't be used, several logins.
    """
    templates = mappings.load(Path(settings.mappings_dir)) if settings.mappings_apply and settings.mappings_dir else []
    sink = ElasticSink(elasticsearch(settings), bulk_path=bulk.path(planned.recipe.path_index))
    tracing = open_tracing(os.environ, planned.recipe, log)

    async def close() -> None:
        await sink.close()
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    return FarSide(
        trade=Indexing(planned, sink, tracing.spans if tracing is not None else None),
        told={"index": settings.index},
        prepare=partial(_install, templates, sink, log),
        close=close,
    )


async def _install(
    templates: list[Template],
    sink: ElasticSink,
    log: FilteringBoundLogger,
    stop: asyncio.Event,
    tell: Callable[[Unready | None], None],
) -> None:
    """Install templates, however long Elasticsearch is away: without them documents would make mappings of their own.

    Raises:
        RefusedTemplateError: it doesn't take one, and never will.
    """
    tries = 0
    while templates and not stop.is_set():
        try:
            for change in await mappings.when_available(sink, mappings.apply, templates):
                template = change.template
                log.info("mappings.applied", kind=template.kind, template=template.name, was=change.state)
        except SinkError as error:
            tries += 1
            tell(Unready(ELASTICSEARCH.waiting, str(error)))
            if tries == 1:
                log.warning("elasticsearch.unreachable", reason=str(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _MAPPINGS_PAUSE_SECONDS)
        else:
            break
    tell(None)
