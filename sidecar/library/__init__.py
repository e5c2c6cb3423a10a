"""The library under the sidecar: RabbitMQ's side of it, for code of one's own.

A consumer is the same pipeline as the sidecar's, with another sink (`library.handler_sink`): a function gets each batch
and gives a verdict for each message. Sessions, batches, settling, dead letters, rounds and the drain are the sidecar's.
"""

from sidecar.core.encoding.exact_json import write as dumps
from sidecar.library.consumers import BatchConsumer, Consumer, consume
from sidecar.library.messages import Message
from sidecar.library.publishing import Outgoing, Publisher
from sidecar.library.settings import ConsumerSettings, Options
from sidecar.library.verdicts import ACK, DEAD_LETTER, DELAY, DISCARD, REQUEUE, Verdict

__all__ = [
    "ACK",
    "DEAD_LETTER",
    "DELAY",
    "DISCARD",
    "REQUEUE",
    "BatchConsumer",
    "Consumer",
    "ConsumerSettings",
    "Message",
    "Options",
    "Outgoing",
    "Publisher",
    "Verdict",
    "consume",
    "dumps",
]
