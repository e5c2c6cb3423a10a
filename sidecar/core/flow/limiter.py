"""How fast, and whether at all: backoff, the adaptive limit on requests in flight, and the breaker.

One limit is shared by all requests, for a 429 speaks of the cluster, not of the request. Time and dice come in as
arguments; the answers are values.
"""

from __future__ import annotations

import enum
from typing import Literal

PROBE_INTERVAL_MIN_SECONDS = 1.0
PROBE_GROWTH = 1.5
PROBE_INTERVAL_MAX_SECONDS = 30.0
"""The bound of the first pause between probes, by what it grows, and where that ends: seven probes in an outage of
30 s, and no more than 12 s until its end is noticed."""


INCREASE = 0.25
"""How much of a request more may be in flight after as many good answers as may be in flight now. A whole one would try
the limit so often that a third of all requests were refused for ever."""


SLOW = 2.5
"""A request that takes so many times as long as usual is a sign of load."""
SLOWER = 0.9
_EXHAUSTED_TIMES = 5
_EXHAUSTED_SECONDS = 10.0
_LATENCY_WEIGHT = 0.1
_SIGNIFICANT_SHARE = 0.5


class Permit(enum.Enum):
    """What may be sent now."""

    NOTHING = enum.auto()
    PROBE = enum.auto()
    REQUEST = enum.auto()


def backoff_seconds(tries: int, jitter: float, min_seconds: float, max_seconds: float) -> float:
    """Return an exponential pause with full jitter, in seconds.

    Full jitter (a uniform choice between nothing and the bound) spreads those who were refused together.

    Args:
        tries: failures so far, from 1.
        jitter: a uniform number from 0 to 1.
        min_seconds: the bound after the first failure, doubled with each further one, in seconds.
        max_seconds: what the bound doesn't exceed, in seconds.
    """
    return jitter * min(max_seconds, min_seconds * 2.0 ** min(tries - 1, 60))


def probe_pause_seconds(probes: int, jitter: float) -> float:
    """Return the pause after a probe that failed, in seconds.

    Little jitter: full jitter would let most probes come too soon, and a server that starts pays for each.

    Args:
        probes: that failed so far, from 1.
        jitter: a uniform number from 0 to 1.
    """
    bound = min(PROBE_INTERVAL_MAX_SECONDS, PROBE_INTERVAL_MIN_SECONDS * PROBE_GROWTH ** min(probes - 1, 60))
    return bound * (0.8 + 0.2 * jitter)


class SendLimiter:
    """Additive increase, multiplicative decrease of the requests in flight, and a breaker for outages.

    Args:
        max_requests: the upper end of the limit.
        delay_min_seconds: the first bound of a backoff.
        delay_max_seconds: the last bound of a backoff.

    Attributes:
        limit: requests that may be in flight; between 1 and `max_requests`.
        held: why nothing but probes is sent, or None.
        held_since: when the present hold began, or the last, in seconds of the loop's clock.
    """

    def __init__(self, max_requests: int, delay_min_seconds: float, delay_max_seconds: float) -> None:
        self.limit = float(max_requests)
        self.held: str | None = None
        self.held_since = 0.0
        self._held_kind = ""
        self._max_requests = max_requests
        self._delay_min_seconds = delay_min_seconds
        self._delay_max_seconds = delay_max_seconds
        self._pause_until = 0.0
        self._refused_in_a_row = 0
        self._refused_since = 0.0
        self._slowed_at = -1.0
        self._usual_seconds = 0.0
        self._probes = 0
        self._probing = False

    def permit(self, now: float, in_flight: int, hung: int = 0) -> Permit:
        """Return what may be sent at `now`.

        Args:
            now: seconds of the loop's clock.
            in_flight: requests that are unanswered.
            hung: those of them that left before the last hold. Their answers may never come, so they take no room in
                the limit, which after a hold is 1; only in that on all.
        """
        if now < self._pause_until:
            return Permit.NOTHING
        if self.held is not None:
            return Permit.NOTHING if self._probing else Permit.PROBE
        free = in_flight - hung < int(self.limit) and in_flight < self._max_requests
        return Permit.REQUEST if free else Permit.NOTHING

    @property
    def breaker(self) -> Literal["closed", "open", "half-open"]:
        """The breaker in the words that its kind has: half open while a probe is on its way."""
        if self.held is None:
            return "closed"
        return "half-open" if self._probing else "open"

    def pause_until(self) -> float:
        """Return until when nothing is sent, in seconds of the loop's clock."""
        return self._pause_until

    @property
    def probing(self) -> bool:
        """Whether a probe is out."""
        return self._probing

    def probe_now(self) -> None:
        """Forget the pause before the next probe: there is a reason to hope."""
        self._pause_until = 0.0

    def probe_sent(self) -> None:
        """Note that a probe is out: one at a time."""
        self._probing = True

    def on_answer(self) -> bool:
        """Note an answer of Elasticsearch that took the request as such; return whether this ends a hold."""
        ended = self.held is not None
        self.held = None
        self._refused_in_a_row = 0
        self._probes = 0
        self._probing = False
        if ended:
            self._pause_until = 0.0
            self.limit = 1.0  # recovery is gradual
        return ended

    def on_success(self, now: float, sent_at: float, share: float = 1.0) -> None:
        """Note a request of which nothing was refused for lack of room: a bit more may be in flight.

        Where it took much longer than others lately, requests queue up in the cluster, and refusals are what comes
        next: then a bit less may be.

        Args:
            now: seconds of the loop's clock.
            sent_at: when the request left, by the same clock.
            share: of a full batch. Small requests are quick whatever the load, and say nothing about it.
        """
        self._refused_in_a_row = 0
        if share >= _SIGNIFICANT_SHARE:
            seconds = now - sent_at
            usual, self._usual_seconds = self._usual_seconds, self._usual_seconds or seconds
            self._usual_seconds += (seconds - self._usual_seconds) * _LATENCY_WEIGHT
            if usual and seconds > usual * SLOW and sent_at > self._slowed_at:
                self._slowed_at = now
                self.limit = max(1.0, self.limit * SLOWER)
                return
        self.limit = min(float(self._max_requests), self.limit + INCREASE / self.limit)

    def on_throttled(
        self, now: float, sent_at: float, jitter: float, share: float, retry_after_seconds: float = 0.0
    ) -> bool:
        """Note a 429 (of a request or of items); return whether that was news.

        Requests that left before the last slowing down say nothing new: only one decrease for what was in flight.

        Args:
            now: seconds of the loop's clock.
            sent_at: when the request left, by the same clock.
            jitter: a uniform number from 0 to 1.
            share: of the request's items that were refused. Where some were taken there is progress, and the pause is
                short; it grows only as long as nothing is taken at all.
            retry_after_seconds: the least pause that Elasticsearch asks for.
        """
        if share < 1.0:
            self._refused_in_a_row = 0  # whenever it left: something was taken
        if sent_at <= self._slowed_at:
            return False
        self._slowed_at = now
        if share >= 1.0:
            self._refused_since = self._refused_since if self._refused_in_a_row else now
            self._refused_in_a_row += 1
        self.limit = max(1.0, self.limit / 2)
        pause = share * backoff_seconds(
            max(1, self._refused_in_a_row), jitter, self._delay_min_seconds, self._delay_max_seconds
        )
        self._pause_until = max(self._pause_until, now + max(pause, retry_after_seconds))
        return True

    def is_exhausted(self, now: float) -> bool:
        """Whether 429 is all that came for so long that it is an outage: a full disk, a pool that stays full."""
        if self.held is not None:
            return True
        return self._refused_in_a_row >= _EXHAUSTED_TIMES and now - self._refused_since >= _EXHAUSTED_SECONDS

    def hold(
        self,
        now: float,
        reason: str,
        jitter: float,
        *,
        was_probe: bool,
        kind: str = "",
        retry_after_seconds: float = 0.0,
    ) -> bool:
        """Note that Elasticsearch is away or refuses everything; return whether that is news.

        Args:
            now: seconds of the loop's clock.
            reason: for people.
            jitter: a uniform number from 0 to 1.
            was_probe: it was a probe that failed.
            kind: of the reason: another one is news. The words for one and the same outage change from probe to probe.
            retry_after_seconds: the least pause that Elasticsearch asks for.
        """
        news = self.held is None or (was_probe and self._held_kind != kind)
        if self.held is None:
            self.held_since = now
        if was_probe:
            self._probing = False
        if was_probe or self.held is None:
            self._probes += 1
            self._pause_until = now + max(probe_pause_seconds(self._probes, jitter), retry_after_seconds)
        if news:
            self.held, self._held_kind = reason, kind
        return news
