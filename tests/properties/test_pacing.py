"""`sidecar.core.pacing`: bounds that hold whatever Elasticsearch answers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.pacing import Pacing, Permit, backoff_seconds
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
def test_backoff_is_between_nothing_and_its_bound(tries: int, roll: float, least: float, most: float) -> None:
    """For any number of tries, without an overflow."""
    pause = backoff_seconds(tries, roll, least, most)
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
    pacing = Pacing(most, 0.5, 30.0)
    now = 0.0
    drew("nothing", not happened)
    drew("asked for a long pause", retry_after > 30.0 and happened)
    for kind, roll, share, passed in happened:
        now += passed
        limit, before = pacing.limit, pacing.pause_until()
        if kind == "stored":
            pacing.stored(now, now - passed / 2, share)
        elif kind == "throttled":
            pacing.throttled(now, sent_at=now - passed / 2, roll=roll, share=share, retry_after_seconds=retry_after)
        elif kind == "answered":
            pacing.answered()
            assert pacing.held is None
        elif pacing.permit(now, 0) is Permit.PROBE or kind == "hold":
            probe = pacing.permit(now, 0) is Permit.PROBE and kind == "probe fails"
            drew("probe fails" if probe else "hold")
            if probe:
                pacing.probe_sent()
                assert pacing.permit(now, 0) is Permit.NOTHING
            pacing.hold(now, kind, roll, was_probe=probe, retry_after_seconds=retry_after)
            assert pacing.held is not None
        drew(kind, kind in {"stored", "throttled", "answered"})
        drew("slowed to the least", pacing.limit < 2 <= most)
        drew("up again", pacing.limit > limit)
        assert 1.0 <= pacing.limit <= most
        assert pacing.pause_until() <= max(before, now + max(30.0, retry_after))
        assert pacing.permit(now, int(pacing.limit)) is not Permit.REQUEST
        late = max(now, pacing.pause_until())
        assert pacing.permit(late, 0) is not Permit.NOTHING, "somebody must find out whether it goes on"


@pytest.mark.draws("a short outage", "a long outage", "answers at once", "answers late")
@settings(max_examples=examples(60))
@given(st.integers(0, 2**32), st.floats(0.0, 0.3), st.floats(1, 600))
def test_an_outage_is_probed_seldom_and_its_end_is_noticed_soon(seed: int, takes: float, outage: float) -> None:
    """About ten requests in 30 s, one every half minute later; after its end no wait longer than the outage."""
    dice = random.Random(seed)
    pacing = Pacing(4, 0.5, 30.0)
    now, probes = 0.0, []
    pacing.hold(now, "away", dice.random(), was_probe=False)
    while True:
        now = max(now, pacing.pause_until())
        assert pacing.permit(now, 0) is Permit.PROBE
        pacing.probe_sent()
        probes.append(now)
        now += takes
        if probes[-1] >= outage:
            assert pacing.answered()
            break
        pacing.hold(now, "away", dice.random(), was_probe=True)
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
    dice = random.Random(seed)
    pacing = Pacing(most, 0.5, 30.0)
    in_flight: list[tuple[float, float, bool]] = []  # when it is answered, when it left, whether it is refused
    now = 0.0
    answered: list[bool] = []
    while len(answered) < 400:
        while pacing.permit(now, len(in_flight)) is Permit.REQUEST:
            in_flight.append((now + 0.05 + 0.05 * dice.random(), now, len(in_flight) >= room))
        in_flight.sort()
        moments = [pacing.pause_until()] if pacing.pause_until() > now else []
        now = min([*moments, *(due for due, _, _ in in_flight[:1])])
        while in_flight and in_flight[0][0] <= now:
            _, left, refused = in_flight.pop(0)
            answered.append(refused)
            if refused:
                pacing.throttled(now, sent_at=left, roll=dice.random(), share=1.0)
            else:
                pacing.stored(now, left)
    drew("room for one" if room == 1 else "room for all" if room >= most else "room for some")
    late = answered[200:]
    assert sum(late) / len(late) <= 0.35
