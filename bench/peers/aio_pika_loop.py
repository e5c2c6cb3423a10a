"""aio-pika-batch with its per-message results, and ``async_bulk``, which decodes and encodes each document.

``PEER_QUEUE_TYPE``: of the queue, which the library declares again.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator

import structlog
from aio_pika.abc import AbstractIncomingMessage
from aio_pika_batch import BatchConsumer, BatchConsumerSettings, MessageResult
from elasticsearch import AsyncElasticsearch
from elasticsearch.helpers import async_bulk

QUEUE, INDEX, BATCH = os.environ["PEER_QUEUE"], os.environ["PEER_INDEX"], int(os.environ["PEER_BATCH"])
structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


class Mover(BatchConsumer[BatchConsumerSettings]):
    """Stores a batch, and acks it message by message."""

    async def on_start(self) -> None:
        """Make the client, in the loop that it is to run in."""
        self.client = AsyncElasticsearch(os.environ["PEER_ES"])

    async def process_messages(self, messages: list[AbstractIncomingMessage]) -> AsyncIterator[MessageResult]:
        """Store, and tell the result of each."""
        actions = [
            {"_index": INDEX, "_id": message.message_id, "_source": json.loads(message.body)} for message in messages
        ]
        await async_bulk(self.client, actions, chunk_size=BATCH)
        for _ in messages:
            yield MessageResult.ACK


SETTINGS = BatchConsumerSettings(
    url=os.environ["PEER_AMQP"],
    queue_name=QUEUE,
    queue_arguments={"x-queue-type": os.environ["PEER_QUEUE_TYPE"]},
    prefetch_count=2 * BATCH,
    batch_size=BATCH,
    batch_timeout=1.0,
)


async def main() -> None:
    """Move messages until terminated."""
    await Mover(SETTINGS).run()


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(main())
    else:
        uvloop.run(main())
