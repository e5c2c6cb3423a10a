"""What tutorials show: kombu decodes each message, ``helpers.bulk`` encodes it again, each is acked by itself."""

import os
import socket

from elasticsearch import Elasticsearch, helpers
from kombu import Connection, Consumer, Message, Queue

QUEUE, INDEX, BATCH = os.environ["PEER_QUEUE"], os.environ["PEER_INDEX"], int(os.environ["PEER_BATCH"])
client = Elasticsearch(os.environ["PEER_ES"])
cache: list[tuple[dict[str, object], Message]] = []


def flush() -> None:
    """Store what was gathered, and ack it."""
    actions = ({"_index": INDEX, "_id": message.properties["message_id"], "_source": body} for body, message in cache)
    helpers.bulk(client, actions, chunk_size=BATCH)
    for _, message in cache:
        message.ack()
    cache.clear()


def receive(body: dict[str, object], message: Message) -> None:
    """Gather a message."""
    cache.append((body, message))
    if len(cache) >= BATCH:
        flush()


with Connection(os.environ["PEER_AMQP"]) as connection:
    queue = Queue(QUEUE, no_declare=True)
    with Consumer(connection, [queue], callbacks=[receive], prefetch_count=2 * BATCH, accept=["json"]):
        while True:
            try:
                connection.drain_events(timeout=1.0)
            except socket.timeout:  # noqa: UP041 - kombu's own
                if cache:
                    flush()
