"""What must be left of a pipeline that has nothing to do: nothing."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from sidecar.core.encoding.split import SplitMessage
from sidecar.core.message import Message
from sidecar.core.scheduling.batcher import Batch
from sidecar.core.wire.republish import Failure

if TYPE_CHECKING:
    from sidecar.pipeline.pipeline import Pipeline


def remains(pipeline: Pipeline) -> list[str]:
    """Return what a pipeline still keeps after everything was settled, in words; empty: nothing."""
    settling, session = pipeline._settler, pipeline._session
    room, copying = settling.waiting_room, settling.republisher
    kept = {
        "documents in the order": len(pipeline._order),
        "batches to send": len(pipeline._send_queue),
        "open groups": pipeline._batcher.open_groups,
        "unadmitted messages": pipeline._unadmitted,
        "messages left": len(pipeline._waiting),
        "messages that wait in place": len(room),
        "deliveries of the waiting room": room._messages,
        "bytes of the waiting room": room._bytes,
        "copies": sum(len(one.queued) for one in copying._destinations.values()) + copying._unconfirmed,
        "encoded, but held back": len(pipeline._encoder.left),
    }
    for ledger in session.ledgers if session is not None else ():
        kept[f"bytes held for {ledger.queue}"] = ledger.memory_bytes
        kept[f"open deliveries of {ledger.queue}"] = ledger.open
    return [f"{count} {what}" for what, count in kept.items() if count]


def objects() -> dict[str, int]:
    """Return how many objects are alive that belong to a message on its way, by kind.

    Whole deliveries are not among them: the last chunk stays where it was read until the next one comes.
    """
    gc.collect()
    parts = 0
    counts = {"SplitMessage": 0, "Batch": 0, "Failure": 0}
    for one in gc.get_objects():
        kind = type(one)
        if kind is Message:
            parts += getattr(one, "split", None) is not None
        elif kind in (SplitMessage, Batch, Failure):
            counts[kind.__name__] += 1
    return {"documents of messages": parts, **counts}
