"""The log of what failed: a line a batch and error type, and in a storm one for ten seconds."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from sidecar.core.stats.failures import FailureKind, FailureThrottle
from sidecar.core.wire.properties import PropertiesError, short

if TYPE_CHECKING:
    from collections.abc import Callable

    from structlog.typing import FilteringBoundLogger

    from sidecar.core.message import Message
    from sidecar.core.stats.failures import FailureGroup, LogLine
    from sidecar.core.wire.republish import Failure

_EVENTS = {"delay": "items.delayed", "wait": "items.waiting"}
_EVENTS_OF_REASONS = {"failure-store": "items.in_failure_store"}


class FailureLog:
    """Tells what failed.

    Args:
        log: where.
        target: returns action, index and id of a message, as far as they are known.
        wall_clock: seconds since 1970.
    """

    def __init__(
        self,
        log: FilteringBoundLogger,
        target: Callable[[Message], tuple[str, str, bytes]],
        wall_clock: Callable[[], float],
    ) -> None:
        self._log = log
        self._target = target
        self._wall_clock = wall_clock
        self._failures = FailureThrottle()
        self._timer: asyncio.TimerHandle | None = None

    def groups(self) -> list[FailureGroup]:
        """Return what failed by kind, that of the latest failure first."""
        return self._failures.groups()

    def note(self, failures: list[Failure], verdict: str) -> None:
        """Note the failures of one batch.

        Args:
            failures: why each of them failed.
            verdict: what becomes of them.
        """
        kinds: dict[FailureKind, list[Failure]] = {}
        for failure in failures:
            kinds.setdefault(FailureKind(verdict, failure.reason, failure.error_type), []).append(failure)
        for kind, group in kinds.items():
            self._tell(
                self._failures.note(
                    kind,
                    len(group),
                    self._document_id(group[0].message),
                    group[0].detail,
                    now=asyncio.get_running_loop().time(),
                    wall=self._wall_clock(),
                )
            )
        self._arm()

    def _document_id(self, message: Message) -> str:
        """Return the document's id, or the message's where none was made of it."""
        _, _, document_id = self._target(message)
        if not document_id:
            with suppress(PropertiesError):
                document_id = short(message.properties, "message_id") or b""
        return document_id.decode(errors="replace")

    def finish(self) -> None:
        """Tell at once what is left to tell."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell(self._failures.take_all())

    def _arm(self) -> None:
        due = self._failures.due()
        if due is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(due, self._due)

    def _due(self) -> None:
        self._timer = None
        self._tell(self._failures.take(asyncio.get_running_loop().time()))
        self._arm()

    def _tell(self, lines: list[LogLine]) -> None:
        for line in lines:
            more = {"over_seconds": line.over_seconds} if line.over_seconds else {}
            self._log.warning(
                _EVENTS_OF_REASONS.get(line.kind.reason) or _EVENTS.get(line.kind.verdict, "items.rejected"),
                reason=line.kind.reason,
                error_type=line.kind.error_type,
                count=line.count,
                example_id=line.example_id,
                example=line.detail,
                **more,
            )
