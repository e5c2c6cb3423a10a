"""From RabbitMQ queues to Elasticsearch by `_bulk`, with a verdict for each message; and a library for one's own code.

What the library offers is imported when it is first asked for: commands, which start with every pod, don't pay for it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.library import (
        ACK,
        DEAD_LETTER,
        DELAY,
        DISCARD,
        REQUEUE,
        BatchConsumer,
        Consumer,
        ConsumerSettings,
        Message,
        Options,
        Outgoing,
        Publisher,
        Verdict,
        consume,
        dumps,
    )

__version__ = "0.1.0"

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
    "__version__",
    "consume",
    "dumps",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module("sidecar.library"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
