"""What the deliveries of a sidecar hold in memory, reckoned from the bytes that their messages refer to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidecar.core.encoding.split import PART_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.core.ledger import Ledger
    from sidecar.core.message import Message
    from sidecar.pipeline.pipeline import Pipeline
    from sidecar.ports import Receive
    from tests.fakes.broker import SimulatedSession

    Connect = Callable[[Receive], Awaitable[SimulatedSession]]


class MemoryAccount:
    """An account of what is held, independent of the product's.

    Args:
        pipeline: whose deliveries and documents are noted.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._deliveries: list[Message] = []
        self._parts: dict[Message, list[Message]] = {}
        self._watch_encoder(pipeline._encoder)

    def watch_sessions(self, connect: Connect) -> Connect:
        """Return the same way to open a session, with each delivery noted that the pipeline keeps."""

        async def connect_watched(receive: Receive) -> SimulatedSession:
            def receive_noted(chunk: list[Message]) -> None:
                if not self._pipeline._flow_control.discarding:
                    self._deliveries += chunk
                receive(chunk)

            return await connect(receive_noted)

        return connect_watched

    def _watch_encoder(self, encoder: Any) -> None:
        encode = encoder.encode

        def encode_noted(messages: list[Message], now: float) -> Any:
            encoded, rejections = encode(messages, now)
            for one in (*encoded, *(rejection.message for rejection in rejections)):
                if (split := getattr(one, "split", None)) is not None:
                    self._parts.setdefault(split.message, []).append(one)
            return encoded, rejections

        encoder.encode = encode_noted

    def differs(self, ledger: Ledger) -> str:
        """Say how a ledger's account differs from what its open deliveries hold; empty: it doesn't."""
        self._deliveries = [message for message in self._deliveries if message.ledger.is_open(message)]
        self._parts = {message: parts for message, parts in self._parts.items() if message.ledger.is_open(message)}
        live = [message for message in self._deliveries if message.ledger is ledger]
        parts = [part for message in live for part in self._parts.get(message, ())]
        wanted = sum(len(message.properties) for message in live) + PART_BYTES * len(parts)
        wanted += sum(len(one.body) for one in (*live, *parts))
        counted = {id(one.body) for one in (*live, *parts)}
        for one in (*live, *parts):
            for document in (one.source, one.coalesced.source if one.coalesced is not None else None):
                if document is not None and id(document) not in counted:  # what replaces another may come from a third
                    counted.add(id(document))
                    wanted += len(document)
        return f"{ledger} counts {ledger.memory_bytes} bytes, its messages hold {wanted}" * (
            ledger.memory_bytes != wanted
        )
