"""The first stage of a fan-in: three sources into one staging exchange, each message in an envelope.

EXAMPLE_AMQP_URL=amqp://localhost/ python examples/fan_in/collect.py

Each source has batches, workers and a prefetch of its own, and none waits for another. A message is acked only when its
envelope is confirmed. The second stage is a sidecar with the settings in ``writer.env``.
"""

from __future__ import annotations

import asyncio
import os

import orjson

from sidecar import ACK, REQUEUE, BatchConsumer, Message, Outgoing, Publisher, Verdict

SOURCES = ("users", "impressions", "searches")
STAGING = "staging"


class Source(BatchConsumer):
    """Puts the messages of one source into envelopes."""

    def __init__(self, source: str, publisher: Publisher) -> None:
        super().__init__(
            prefix="EXAMPLE_",
            amqp_queue=f"{STAGING}.{source}",
            amqp_exchange=source,
            amqp_exchange_type="fanout",
            batch_max_items=500,
            batch_max_age="200ms",
            workers=2,
        )
        self.source = source
        self.publisher = publisher

    async def process(self, batch: list[Message]) -> list[Verdict]:
        """Publish a batch; what isn't confirmed goes back. Where RabbitMQ is lost, all of it comes again anyway."""
        refusals = await self.publisher.publish(self.envelope(message) for message in batch)
        return [ACK if refusal is None else REQUEUE for refusal in refusals]

    def envelope(self, message: Message) -> Outgoing:
        """Return what is staged: the body as text, so that anything goes, and the id, so that repeats do no harm."""
        envelope = {"source": self.source, "id": message.message_id, "payload": message.body.decode(errors="replace")}
        document_id = f"{self.source}-{message.message_id}" if message.message_id else None
        return Outgoing(
            body=orjson.dumps(envelope),
            exchange=STAGING,
            message_id=document_id,
            type=self.source,
            timestamp=message.timestamp,
        )


async def main() -> None:
    """Run all sources until SIGTERM or SIGINT."""
    publisher = Publisher(
        prefix="EXAMPLE_", amqp_queue=f"{STAGING}.writer", amqp_exchange=STAGING, amqp_exchange_type="fanout"
    )
    async with publisher:
        sources = [Source(name, publisher) for name in SOURCES]
        for source in sources[1:]:
            await source.start()
        try:
            await sources[0].run()  # it has the signals
        finally:
            await asyncio.gather(*(source.stop() for source in sources[1:]))


if __name__ == "__main__":
    print(f"process {os.getpid()}: {', '.join(SOURCES)} into {STAGING}", flush=True)
    asyncio.run(main())
