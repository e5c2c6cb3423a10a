"""Finding out which group messages belong to, where nothing else is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.core.encoding.encoder import REFUSALS, Rejection, correlation, rejection
from sidecar.core.encoding.template import TemplateContext

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.encoding.encoder import EncoderConfig
    from sidecar.core.message import Message


class CorrelationEncoder:
    """Finds out which group messages belong to; nothing is made of them, so there is always room for it.

    Args:
        encoder_config: how they say so.
    """

    def __init__(self, encoder_config: EncoderConfig) -> None:
        self.room_bytes = 0
        self.left: list[Message] = []
        self._config = encoder_config

    def encode(self, messages: Iterable[Message], now: float) -> tuple[list[Message], list[Rejection]]:
        """Fill in `received_at`, and `correlation` where messages say so; return those and the others with reasons."""
        encoder_config = self._config
        messages = list(messages)
        for message in messages:
            message.received_at = now
        if not encoder_config.correlates:
            return messages, []
        encoded: list[Message] = []
        rejections: list[Rejection] = []
        for message in messages:
            try:
                message.correlation = correlation(
                    encoder_config, TemplateContext(message, now, encoder_config.max_bytes)
                )
            except REFUSALS as why:
                rejections.append(rejection(message, why))
            else:
                encoded.append(message)
        return encoded, rejections
