"""Finding out which group messages belong to, where nothing else is made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.core.compose import REFUSALS, Reject, correlation, reject
from sidecar.core.template import Scene

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.compose import Recipe
    from sidecar.core.message import Message


class Groups:
    """Finds out which group messages belong to; nothing is made of them, so there is always room for it.

    Args:
        recipe: how they say so.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.room_bytes = 0
        self.left: list[Message] = []
        self._recipe = recipe

    def compose(self, messages: Iterable[Message], now: float) -> tuple[list[Message], list[Reject]]:
        """Fill in `received_at`, and `correlation` where messages say so; return those and the others with reasons."""
        recipe = self._recipe
        messages = list(messages)
        for message in messages:
            message.received_at = now
        if not recipe.correlates:
            return messages, []
        composed: list[Message] = []
        rejects: list[Reject] = []
        for message in messages:
            try:
                message.correlation = correlation(recipe, Scene(message, now, recipe.most_bytes))
            except REFUSALS as why:
                rejects.append(reject(message, why))
            else:
                composed.append(message)
        return composed, rejects
