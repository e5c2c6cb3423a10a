"""`sidecar.core.flow.limiter`: bounds that hold whatever Elasticsearch answers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.flow.limiter import (
    INCREASE,
    PROBE_INTERVAL_MAX_SECONDS,
    PROBE_INTERVAL_MIN_SECONDS,
    SLOW,
    SLOWER,
    Permit,
    SendLimiter,
    backoff_seconds,
    probe_pause_seconds,
)
from tests.builders import examples
from tests.drawing import drew

rolls = st.floats(0, 1)
shares = st.sampled_from([0.001, 0.5, 1.0])
events = st.lists(
    st.tuples(
        st.sampled_from(["stored", "throttled", "answered", "hold", "probe fails"]), rolls, shares, st.floats(0, 9)
    ),
    max_size=60,
)


@pytest.mark.draws("the first", "at its bound", "below its bound", "beyond 2**1024")
@settings(max_examples=examples(200))
@given(st.integers(1, 12) | st.integers(1, 10**6), rolls, st.floats(0.001, 10), st.floats(10, 100))
def test_backoff_is_between_nothing_and_its_bound(tries: int, jitter: float, least: float, most: float) -> None:
    """For any number of tries, without an overflow."""
    pause = backoff_seconds(tries, jitter, least, most)
    drew("the first", tries == 1)
    drew("beyond 2**1024", tries > 1024)
    drew("at its bound" if least * 2.0 ** min(tries - 1, 60) >= most else "below its bound")
    assert 0 <= pause <= min(most, least * 2.0 ** min(tries - 1, 60))


@pytest.mark.draws(
    "nothing", "stored", "throttled", "answered", "hold", "probe fails", "slowed to the least", "up again",
    "asked for a long pause",
)  # fmt: skip
@settings(max_examples=examples(200))
@given(events, st.integers(1, 64), st.floats(0, 40))
def test_the_limit_and_the_pauses_are_bounded(
    happened: list[tuple[str, float, float, float]], most: int, retry_after: float
) -> None:
    """The limit stays between 1 and the most; no pause is longer than the longest, or than asked for."""
    limiter = SendLimiter(most, 0.5, 30.0)
    now = 0.0
    drew("nothing", not happened)
    drew("asked for a long pause", retry_after > 30.0 and happened)
    for kind, jitter, share, passed in happened:
        now += passed
        limit, before = limiter.limit, limiter.pause_until()
        if kind == "stored":
            limiter.on_success(now, now - passed / 2, share)
        elif kind == "throttled":
            limiter.on_throttled(
                now, sent_at=now - passed / 2, jitter=jitter, share=share, retry_after_seconds=retry_after
            )
        elif kind == "answered":
            limiter.on_answer()
            assert limiter.held is None
        elif limiter.permit(now, 0) is Permit.PROBE or kind == "hold":
            probe = limiter.permit(now, 0) is Permit.PROBE and kind == "probe fails"
            drew("probe fails" if probe else "hold")
            if probe:
                limiter.probe_sent()
                assert limiter.permit(now, 0) is Permit.NOTHING
            limiter.hold(now, kind, jitter, was_probe=probe, retry_after_seconds=retry_after)
            assert limiter.held is not None
        drew(kind, kind in {"stored", "throttled", "answered"})
        drew("slowed to the least", limiter.limit < 2 <= most)
        drew("up again", limiter.limit > limit)
        assert 1.0 <= limiter.limit <= most
        assert limiter.pause_until() <= max(before, now + max(30.0, retry_after))
        assert limiter.permit(now, int(limiter.limit)) is not Permit.REQUEST
        late = max(now, limiter.pause_until())
        assert limiter.permit(late, 0) is not Permit.NOTHING, "somebody must find out whether it goes on"


@pytest.mark.draws("a short outage", "a long outage", "answers at once", "answers late")
@settings(max_examples=examples(60))
@given(st.integers(0, 2**32), st.floats(0.0, 0.3), st.floats(1, 600))
def test_an_outage_is_probed_seldom_and_its_end_is_noticed_soon(seed: int, takes: float, outage: float) -> None:
    """About ten requests in 30 s, one every half minute later; after its end no wait longer than the outage."""
    rng = random.Random(seed)
    limiter = SendLimiter(4, 0.5, 30.0)
    now, probes = 0.0, []
    limiter.hold(now, "away", rng.random(), was_probe=False)
    while True:
        now = max(now, limiter.pause_until())
        assert limiter.permit(now, 0) is Permit.PROBE
        limiter.probe_sent()
        probes.append(now)
        now += takes
        if probes[-1] >= outage:
            assert limiter.on_answer()
            break
        limiter.hold(now, "away", rng.random(), was_probe=True)
    drew("a short outage" if outage < 30 else "a long outage")
    drew("answers late" if takes > 0.1 else "answers at once")
    assert sum(at < 30 for at in probes) <= 10
    assert sum(at < outage for at in probes) <= 10 + outage / 24
    assert probes[-1] - outage <= min(30.0, 1.0 + outage / 2) + takes


@pytest.mark.draws("room for one", "room for all", "room for some")
@settings(max_examples=examples(20))
@given(st.integers(0, 2**32), st.integers(1, 16), st.integers(1, 8))
def test_the_share_of_429s_falls_as_it_slows_down(seed: int, most: int, room: int) -> None:
    """A server with room for few requests at once is not asked for many; and what room there is gets used."""
    rng = random.Random(seed)
    limiter = SendLimiter(most, 0.5, 30.0)
    in_flight: list[tuple[float, float, bool]] = []  # when it is answered, when it left, whether it is refused
    now = 0.0
    answered: list[bool] = []
    while len(answered) < 400:
        while limiter.permit(now, len(in_flight)) is Permit.REQUEST:
            in_flight.append((now + 0.05 + 0.05 * rng.random(), now, len(in_flight) >= room))
        in_flight.sort()
        moments = [limiter.pause_until()] if limiter.pause_until() > now else []
        now = min([*moments, *(due for due, _, _ in in_flight[:1])])
        while in_flight and in_flight[0][0] <= now:
            _, left, refused = in_flight.pop(0)
            answered.append(refused)
            if refused:
                limiter.on_throttled(now, sent_at=left, jitter=rng.random(), share=1.0)
            else:
                limiter.on_success(now, left)
    drew("room for one" if room == 1 else "room for all" if room >= most else "room for some")
    late = answered[200:]
    assert sum(late) / len(late) <= 0.35


full = st.tuples(st.just("full"), st.integers(0, 9).map(lambda jitter: jitter == 0))
others = st.tuples(st.sampled_from(["full", "partial", "quick", "slow", "heard"]), st.booleans())
histories = st.lists(
    st.lists(full, max_size=7).flatmap(lambda row: others.map(lambda one: [*row, one])), max_size=6
).map(lambda rows: [event for row in rows for event in row])
"""Rows of 429s, each of which something else ends, or doesn't: what happened, and whether the request had left late."""


@pytest.mark.draws("full", "partial", "quick", "slow", "heard", "left late", "an outage", "a row that was broken")
@settings(max_examples=examples(200))
@given(histories, st.sampled_from([1.0, 2.0, 4.0]))
def test_only_an_unbroken_row_of_429s_is_an_outage(history: list[tuple[str, bool]], step: float) -> None:
    """A busy cluster isn't an outage: whatever is taken between two 429s ends the row, slow, in part or late as it is.

    Five 429s count, of requests that left after the last slowing down, if the first of them is ten seconds old.
    """
    limiter = SendLimiter(8, 0.5, 30.0)
    limiter.on_success(0.0, -1.0)  # what is usual
    row: list[float] = []
    now, slowed_at = 0.0, -1.0
    for kind, is_late in history:
        drew(kind)
        drew("left late", is_late and kind == "partial" and len(row) > 1)
        drew("a row that was broken", kind != "full" and len(row) > 3)
        now += step
        sent_at = min(slowed_at, now) if is_late else now - step / 2
        if kind in ("full", "partial"):
            news = limiter.on_throttled(now, sent_at, 1.0, 1.0 if kind == "full" else 0.3)
            assert news is (sent_at > slowed_at)
            slowed_at = now if news else slowed_at
            row = [] if kind == "partial" else [*row, now] if news else row
        elif kind == "heard":
            limiter.on_answer()
            row = []
        else:
            before = limiter.limit
            sent_at = now - 0.01 if kind == "quick" else now - 500.0
            limiter.on_success(now, sent_at)
            slowed_at = now if limiter.limit < before else slowed_at
            row = []
        assert limiter.is_exhausted(now) is (len(row) >= 5 and now - row[0] >= 10.0)
        assert limiter.is_exhausted(now + 10.0) is (len(row) >= 5)
        drew("an outage", limiter.is_exhausted(now))


@pytest.mark.draws("held before", "throttled before", "several probes failed")
@settings(max_examples=examples(100))
@given(events, rolls)
def test_what_ended_a_hold_forgot_it(happened: list[tuple[str, float, float, float]], jitter: float) -> None:
    """The next hold begins as the first one ever did: it is news, no probe is out, and its first pause is as short."""
    limiter, fresh = SendLimiter(4, 0.5, 30.0), SendLimiter(4, 0.5, 30.0)
    now = 0.0
    for kind, some_roll, share, passed in happened:
        now += passed
        if kind == "throttled":
            limiter.on_throttled(now, now, some_roll, share)
        elif kind in ("hold", "probe fails"):
            if kind == "probe fails" and limiter.held is not None:
                limiter.probe_sent()
            news = limiter.hold(now, "away", some_roll, was_probe=kind == "probe fails", kind=f"{share}")
            assert news or limiter.held is not None
        elif kind == "stored":
            limiter.on_answer()
            limiter.on_success(now, now - passed, share)
    drew("held before", limiter.held is not None)
    drew("throttled before", any(kind == "throttled" for kind, _, _, _ in happened))
    drew("several probes failed", limiter._probes > 2)
    limiter.hold(now, "away", 0.0, was_probe=False, kind="last")
    now += 1_000.0
    assert limiter.on_answer()
    assert not limiter.on_answer()
    assert (limiter.limit, limiter.breaker, limiter.probing, limiter.permit(now, 0)) == (
        1,
        "closed",
        False,
        Permit.REQUEST,
    )
    for was_probe in (True, False, True):
        news = [one.hold(now, "away", jitter, was_probe=was_probe, kind="last") for one in (limiter, fresh)]
        assert news[0] is news[1]
        assert limiter.pause_until() == fresh.pause_until()
        assert limiter.breaker == fresh.breaker == "open"


@pytest.mark.draws("a late probe", "another reason", "the same again")
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from(["a", "b"])), max_size=20))
def test_every_hold_that_begins_is_news_and_so_is_another_reason(steps: list[tuple[bool, bool, str]]) -> None:
    """Also one that begins with a probe whose hold a late answer had ended meanwhile; the same one twice is not."""
    limiter = SendLimiter(4, 0.5, 30.0)
    kind_held = None
    for now, (ends, was_probe, kind) in enumerate(steps):
        if ends:
            limiter.on_answer()
            kind_held = None
        drew("a late probe", ends and was_probe)
        drew("another reason" if kind != kind_held else "the same again", was_probe and not ends)
        news = limiter.hold(now, kind, 0.5, was_probe=was_probe, kind=kind)
        assert news is (kind_held is None or (was_probe and kind != kind_held))
        kind_held = kind if news else kind_held
        assert limiter.held == kind_held


@pytest.mark.draws("slow", "quick", "at the most")
@given(st.floats(1, 16), st.integers(1, 16), st.floats(0.01, 1.0), st.floats(1.0, 10.0))
def test_a_success_moves_the_limit_by_a_little(start: float, most: int, share: float, times_usual: float) -> None:
    """Up by a quarter of a request a round; down by a tenth for one full request that took much longer than usual."""
    limiter = SendLimiter(most, 0.5, 30.0)
    limiter.limit = min(float(most), start)
    limiter.on_success(1.0, 0.0)
    before = limiter.limit
    limiter.on_success(1.0 + times_usual, 1.0, share)
    slow = share >= 0.5 and times_usual > SLOW
    drew("slow" if slow else "quick")
    drew("at the most", before == most)
    expected = max(1.0, before * SLOWER) if slow else min(float(most), before + INCREASE / before)
    assert limiter.limit == expected
    if slow:
        limiter.on_success(1.0 + 2 * times_usual, 1.0, share)  # it left before that was known
        assert limiter.limit >= expected


@pytest.mark.draws("equal tries", "at the bound", "below it")
@given(st.integers(1, 12), st.integers(1, 40), rolls, rolls)
def test_pauses_grow_with_failures_and_with_chance(fewer: int, more: int, low: float, high: float) -> None:
    """Those of a backoff and those between probes: never shorter after more failures, never beyond their bounds."""
    (fewer, more), (low, high) = sorted((fewer, more)), sorted((low, high))
    drew("equal tries", fewer == more)
    drew("at the bound" if backoff_seconds(more, 1.0, 0.5, 30.0) == 30.0 else "below it")
    for pause in (lambda tries, jitter: backoff_seconds(tries, jitter, 0.5, 30.0), probe_pause_seconds):
        assert pause(fewer, low) <= pause(more, low) + 1e-9
        assert pause(fewer, low) <= pause(fewer, high) + 1e-9
    assert PROBE_INTERVAL_MIN_SECONDS * 0.8 <= probe_pause_seconds(fewer, low) <= PROBE_INTERVAL_MAX_SECONDS
