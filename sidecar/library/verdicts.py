"""What code says of a message."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from sidecar.core.wire.republish import MAX_DELAY_SECONDS

Kind = Literal["ack", "dead-letter", "delay", "requeue", "discard"]
VERDICT_KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a message. Use `ACK`, `DEAD_LETTER`, `DELAY`, `REQUEUE` and `DISCARD`.

    Attributes:
        kind: which of them it is.
        reason: the header ``sidecar-reason`` of a dead letter: a word that a program can look for.
        detail: the header ``sidecar-error-reason``: a sentence for people. Both are logged: no secrets.
        seconds: how long a delayed message waits; None for the configured delay, doubled with each round.

    Raises:
        ValueError: the kind or the delay is not valid.
        TypeError: a reason is not a `str`.
    """

    kind: Kind
    reason: str = ""
    detail: str = ""
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Refuse an invalid verdict where it is created, so that the traceback shows the code."""
        if self.kind not in VERDICT_KINDS:
            raise ValueError(f"{self.kind!r} is not a kind of verdict; there are {', '.join(VERDICT_KINDS)}")
        for name, text in (("reason", self.reason), ("detail", self.detail)):
            if not isinstance(text, str):
                raise TypeError(f"the {name} of a verdict must be a str, not {type(text).__name__}")
            # A text from a JSON body may hold half of a surrogate pair, which a header can't.
            object.__setattr__(self, name, text.encode(errors="replace").decode())
        if self.seconds is None:
            return
        if self.kind != "delay":
            raise ValueError(f"{self.kind} has no delay; DELAY has")
        if not 0.001 <= self.seconds <= MAX_DELAY_SECONDS:  # noqa: PLR2004 - a millisecond
            allowed = f"from 0.001 s to {MAX_DELAY_SECONDS:g} s"
            raise ValueError(f"a delay of {self.seconds} s is not valid; use one {allowed}")

    def because(self, reason: str, detail: str = "") -> Verdict:
        """Return the same verdict with reasons, for `DEAD_LETTER` and `DELAY`."""
        return replace(self, reason=reason, detail=detail)

    def after(self, seconds: float) -> Verdict:
        """Return `DELAY` with a delay of its own. Each length is a queue on the broker: use few of them.

        Args:
            seconds: from 0.001 to 300.

        Raises:
            ValueError: it is another verdict, or another length.
        """
        return replace(self, seconds=seconds)


ACK = Verdict("ack")
"""Done: it is gone."""
DEAD_LETTER = Verdict("dead-letter")
"""It can't be done: the dead-letter queue has it, with the reason."""
DELAY = Verdict("delay")
"""Not now: once more after a while, by a delay queue. Counted: after so many rounds it is a dead letter."""
REQUEUE = Verdict("requeue")
"""Not here: ``basic.nack``, at once and uncounted. What is always requeued comes again for ever."""
DISCARD = Verdict("discard")
"""Not wanted: acked like `ACK`, and counted apart."""

VERDICTS = {verdict.kind: verdict for verdict in (ACK, DEAD_LETTER, DELAY, REQUEUE, DISCARD)}
