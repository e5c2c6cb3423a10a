"""The simplest strong rival: pika, bodies passed through, one ack a batch. It promises nothing.

No answer is looked into further, and what doesn't fill a batch waits for ever.
Environment, here and in the other peers: PEER_AMQP, PEER_ES (URLs), PEER_QUEUE, PEER_INDEX, PEER_BATCH.
"""

import os
import sys

import pika
from elasticsearch import Elasticsearch

INDEX, BATCH = os.environ["PEER_INDEX"], int(os.environ["PEER_BATCH"])
client = Elasticsearch(os.environ["PEER_ES"])
lines: list[bytes] = []


def receive(channel, method, properties, body) -> None:  # noqa: ANN001 - pika's
    """Gather a message; store and ack a full batch."""
    lines.append(b'{"index":{"_id":"%s"}}\n%s\n' % (properties.message_id.encode(), body))
    if len(lines) == BATCH:
        if client.bulk(index=INDEX, body=b"".join(lines), filter_path="errors,items.*.error")["errors"]:
            sys.exit("an item failed")
        channel.basic_ack(method.delivery_tag, multiple=True)
        lines.clear()


channel = pika.BlockingConnection(pika.URLParameters(os.environ["PEER_AMQP"])).channel()
channel.basic_qos(prefetch_count=2 * BATCH)
channel.basic_consume(os.environ["PEER_QUEUE"], receive)
channel.start_consuming()
