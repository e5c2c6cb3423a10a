"""What ``sidecar run`` needs of the far side, whichever it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Mapping

    from sidecar.core.stats.snapshot import NotReady
    from sidecar.pipeline.work import Sink


@dataclass(frozen=True, slots=True, kw_only=True)
class FarSide:
    """What takes the messages.

    Attributes:
        sink: the pipeline's.
        told: what the first line of the log says of it.
        prepare: to be awaited before anything is consumed; it returns at once when the event is set, and tells why it
            takes long.
        close: to be awaited at the end.
    """

    sink: Sink
    told: Mapping[str, object]
    prepare: Callable[[asyncio.Event, Callable[[NotReady | None], None]], Awaitable[None]]
    close: Callable[[], Awaitable[None]]
