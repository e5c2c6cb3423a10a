"""`sidecar.pipeline.admission`: probes while messages wait for the guard."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sidecar.core.encoding.encoder import EncoderConfig, Rejection
from sidecar.core.encoding.template import Template
from sidecar.core.flow.reject_guard import Outcome, RejectGuard
from sidecar.pipeline.admission import Admission
from sidecar.pipeline.config import PipelineConfig
from tests.builders import message
from tests.fakes import clock


class BulkEncoder:
    """Rejects everything but what has one of some tags, or nothing."""

    def __init__(self) -> None:
        self.room_bytes = 0
        self.left: list[Any] = []
        self.rejections = True
        self.good: tuple[int, ...] = ()

    def encode(self, messages: Any, _: float) -> tuple[list[Any], list[Rejection]]:
        """Do it."""
        held = list(messages)
        good = [one for one in held if not self.rejections or one.tag in self.good]
        return good, [Rejection(one, "malformed", "no JSON") for one in held if one not in good]


class Log:
    """Keeps the events."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def warning(self, event: str, **_: object) -> None:
        """Keep one."""
        self.events.append(event)

    info = warning


def admission_of(guard: RejectGuard, encoder: BulkEncoder, log: Log, changes: list[str | None]) -> Admission:
    """Return an admission whose chance is always the same."""
    admission = Admission(
        PipelineConfig(encoder_config=EncoderConfig(index=Template("docs")), reject_guard=2),
        guard,
        encoder,
        rng=cast("Any", SimpleNamespace(random=lambda: 1.0)),
        log=cast("Any", log),
        wall_clock=lambda: 0.0,
        changed=lambda: changes.append(admission.held),
    )
    return admission


@pytest.mark.parametrize(("good", "goes_on"), [((150, 250), True), ((250,), False)])
def test_the_second_release_needs_two_that_can_be_encoded_wherever_they_wait(
    good: tuple[int, ...], goes_on: bool
) -> None:
    """A probe is made in chunks; those of all chunks count together."""

    async def main() -> None:
        guard, encoder = RejectGuard(2), BulkEncoder()
        admission = admission_of(guard, encoder, Log(), [])
        encoder.good = good
        guard.release()
        guard.note([Outcome("malformed", "malformed: no JSON")] * 2)
        assert await admission.probe([message(tag) for tag in range(1, 301)]) is goes_on

    clock.run(main())


def test_the_next_hold_is_probed_as_soon_as_the_first() -> None:
    """Pauses grow within a hold, and recovery resets them; each hold begins and ends once, and is told."""

    async def main() -> None:
        guard, encoder, log = RejectGuard(2), BulkEncoder(), Log()
        changes: list[str | None] = []
        admission = admission_of(guard, encoder, log, changes)
        waiting = [message(tag) for tag in range(1, 4)]
        pauses: list[list[float]] = []
        for _ in range(2):
            encoder.rejections = True
            guard.note([Outcome("malformed", "malformed: no JSON")] * 2)
            pauses.append([])
            for _ in range(3):
                assert not await admission.probe(waiting)
                pauses[-1].append(admission.probe_at - asyncio.get_running_loop().time())
            assert admission.held is not None
            assert "2 messages in a row were rejected: malformed: no JSON" in admission.held
            encoder.rejections = False
            assert await admission.probe(waiting)
            assert admission.held is None
            guard.release()
        assert pauses[0] == sorted(set(pauses[0]))
        assert pauses[1] == pauses[0]
        assert admission.probes == 6
        assert log.events == ["elasticsearch.held", "elasticsearch.resumed"] * 2
        assert [change is None for change in changes] == [False, True] * 2

    clock.run(main())
