"""The sidecar's own trade: each batch is a bulk request, and its answer says what becomes of each message."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from sidecar.core.encoding.encoder import BulkEncoder
from sidecar.core.results import bulk
from sidecar.errors import SinkError
from sidecar.pipeline.response_handler import ResponseHandler

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.core.scheduling.batcher import Batch
    from sidecar.pipeline.config import PipelineConfig
    from sidecar.pipeline.work import Workplace
    from sidecar.ports import Answer, BulkClient, Tracing


class ElasticsearchSink:
    """Has documents stored.

    Args:
        config: what to do.
        sink: where requests go.
        tracing: told of each request; None where nothing is traced.
    """

    def __init__(self, config: PipelineConfig, sink: BulkClient, tracing: Tracing | None = None) -> None:
        self._config = config
        self._sink = sink
        self._tracing = tracing

    async def check(self) -> str | None:
        """Return why requests are in vain now, or None."""
        return await self._sink.check()

    def encoder(self, make_id: Callable[[], str]) -> BulkEncoder:
        """Return what makes bulk lines of messages."""
        return BulkEncoder(self._config.encoder_config, make_id)

    def employ(self, place: Workplace) -> Requests:
        """Return what sends the requests of one pipeline."""
        return Requests(self._config, self._sink, self._tracing, place)


class Requests:
    """Sends bulk requests and has conclusions drawn from their answers.

    Args:
        config: what to do.
        sink: where they go.
        tracing: told of each; None where nothing is traced.
        place: where the conclusions take effect.
    """

    def __init__(self, config: PipelineConfig, sink: BulkClient, tracing: Tracing | None, place: Workplace) -> None:
        self._sink = sink
        self._tracing = tracing
        self._path = bulk.path(config.encoder_config.path_index)
        self._counters = place.counters
        self._concluding = ResponseHandler(config, place)

    async def carry_out(self, batch: Batch, *, probe: bool) -> None:
        """Send a batch and deal with the answer, or with its absence."""
        sent_at = self._now()
        try:
            answer = await self._ask(batch)
            self._counters.bulk_seconds.observe(self._now() - sent_at)
            self._concluding.handle(batch, answer, sent_at, probe=probe)
        except SinkError as error:
            self._counters.bulk_seconds.observe(self._now() - sent_at)
            self._concluding.on_no_response(batch, str(error), probe=probe)

    async def _ask(self, batch: Batch) -> Answer:
        """Send a batch as one request.

        Raises:
            SinkError: no answer came.
        """
        body = bulk.body(batch.messages)
        if self._tracing is None:
            return await self._sink.bulk(self._path, body)
        with self._tracing.request(batch, len(body)) as tell:
            answer = await self._sink.bulk(self._path, body)
            tell(answer)
            return answer

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
