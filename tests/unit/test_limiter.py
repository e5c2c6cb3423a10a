"""`sidecar.core.flow.limiter`."""

from __future__ import annotations

import pytest

from sidecar.core.flow.limiter import Permit, SendLimiter, backoff_seconds


def limiter(max_requests: int = 8) -> SendLimiter:
    """Return a pacing with the default delays."""
    return SendLimiter(max_requests, 0.5, 30.0)


@pytest.mark.parametrize(("tries", "bound"), [(1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (10_000, 30.0)])
def test_backoff_doubles_up_to_its_bound_with_full_jitter(tries: int, bound: float) -> None:
    """Uniform between nothing and the bound, so that those who were refused together don't come back together."""
    assert backoff_seconds(tries, 1.0, 0.5, 30.0) == bound
    assert backoff_seconds(tries, 0.5, 0.5, 30.0) == bound / 2
    assert backoff_seconds(tries, 0.0, 0.5, 30.0) == 0.0


def test_requests_are_permitted_up_to_the_limit() -> None:
    """And no more."""
    pace = limiter(4)
    assert [pace.permit(0.0, in_flight) for in_flight in (0, 3)] == [Permit.REQUEST] * 2
    assert [pace.permit(0.0, in_flight) for in_flight in (4, 5)] == [Permit.NOTHING] * 2


def test_a_429_halves_the_limit_and_pauses() -> None:
    """It slows down at once, for the whole cluster spoke."""
    pace = limiter(8)
    assert pace.on_throttled(10.0, sent_at=9.0, jitter=1.0, share=1.0)
    assert (pace.limit, pace.pause_until()) == (4.0, 10.5)
    assert pace.permit(10.4, 0) is Permit.NOTHING
    assert pace.permit(10.5, 3) is Permit.REQUEST
    assert pace.permit(10.5, 4) is Permit.NOTHING


def test_requests_that_left_before_say_nothing_new() -> None:
    """Eight in flight that are all refused halve the limit once, not eight times."""
    pace = limiter(8)
    assert pace.on_throttled(10.0, sent_at=9.0, jitter=1.0, share=1.0)
    assert not any(pace.on_throttled(10.0 + late, sent_at=9.5, jitter=1.0, share=1.0) for late in (0.1, 0.2, 0.3))
    assert pace.limit == 4.0
    assert pace.on_throttled(11.0, sent_at=10.6, jitter=1.0, share=1.0)
    assert pace.limit == 2.0


def test_the_limit_never_falls_below_one() -> None:
    """Something always goes, or nobody would notice that there is room again."""
    pace = limiter(8)
    for second in range(20):
        pace.on_throttled(float(second), sent_at=second - 0.5, jitter=0.0, share=1.0)
    assert pace.limit == 1.0
    assert pace.permit(100.0, 0) is Permit.REQUEST


def test_pauses_grow_while_everything_is_refused() -> None:
    """429 is never final, and never hammered either."""
    pace = limiter()
    ends = []
    now = 0.0
    for _ in range(8):
        pace.on_throttled(now + 0.01, sent_at=now, jitter=1.0, share=1.0)
        ends.append(pace.pause_until() - now - 0.01)
        now = pace.pause_until()
    assert ends == pytest.approx([0.5, 1, 2, 4, 8, 16, 30, 30])


def test_where_some_items_were_taken_the_pause_is_short_and_does_not_grow() -> None:
    """There is progress: only the share that was refused is waited for."""
    pace = limiter()
    for second in range(1, 6):
        pace.on_throttled(float(second), sent_at=second - 0.5, jitter=1.0, share=0.5)
        assert pace.pause_until() == second + 0.25
    assert pace.limit == 1.0


def test_retry_after_is_obeyed() -> None:
    """A server that says when is not asked before."""
    pace = limiter()
    pace.on_throttled(0.0, sent_at=-0.5, jitter=0.0, share=1.0, retry_after_seconds=12.0)
    assert pace.pause_until() == 12.0


def test_success_raises_the_limit_slowly() -> None:
    """By about one for four times as many requests as are in flight, up to the configured most."""
    pace = limiter(8)
    pace.on_throttled(1.0, sent_at=0.5, jitter=0.0, share=1.0)
    for _ in range(16):
        pace.on_success(0.0, 0.0)
    assert 4.7 < pace.limit < 5.0
    for _ in range(400):
        pace.on_success(0.0, 0.0)
    assert pace.limit == 8.0


def test_an_outage_stops_everything_but_a_probe_at_a_time() -> None:
    """And the probe waits for its pause."""
    pace = limiter()
    assert pace.hold(0.0, "connection refused", 1.0, was_probe=False)
    assert pace.permit(0.99, 0) is Permit.NOTHING
    assert pace.permit(1.0, 0) is Permit.PROBE
    pace.probe_sent()
    assert pace.permit(5.0, 1) is Permit.NOTHING


def test_requests_that_fail_with_the_first_say_nothing_new() -> None:
    """Neither do they push the probe away, nor free a second one."""
    pace = limiter()
    pace.hold(0.0, "connection refused", 1.0, was_probe=False)
    assert not pace.hold(0.9, "timeout", 1.0, was_probe=False)
    assert (pace.pause_until(), pace.held) == (1.0, "connection refused")
    pace.probe_sent()
    assert not pace.hold(1.1, "timeout", 1.0, was_probe=False)
    assert pace.permit(9.0, 1) is Permit.NOTHING


def test_a_probe_that_fails_for_another_reason_is_news() -> None:
    """The reason that is shown is the present one: the server came up, and now wants a password."""
    pace = limiter()
    pace.hold(0.0, "connection refused", 1.0, was_probe=False)
    pace.probe_sent()
    assert not pace.hold(1.0, "connection reset", 1.0, was_probe=True)
    pace.probe_sent()
    assert pace.hold(3.0, "401 security_exception", 1.0, was_probe=True, kind="401")
    assert pace.held == "401 security_exception"


def test_pauses_between_probes_grow_to_their_bound() -> None:
    """About seven in an outage of 30 s, then one every half minute."""
    pace = limiter()
    now, pauses = 0.0, []
    pace.hold(now, "away", 1.0, was_probe=False)
    for _ in range(12):
        pauses.append(pace.pause_until() - now)
        now = pace.pause_until()
        assert pace.permit(now, 0) is Permit.PROBE
        pace.probe_sent()
        pace.hold(now, "away", 1.0, was_probe=True)
    assert pauses[:4] == pytest.approx([1.0, 1.5, 2.25, 3.375])
    assert pauses[-1] == 30.0


def test_an_answer_ends_the_hold_and_recovery_is_gradual() -> None:
    """One request first, whatever the limit was before the outage."""
    pace = limiter(8)
    pace.hold(0.0, "away", 1.0, was_probe=False)
    pace.probe_sent()
    assert pace.on_answer()
    assert pace.held is None
    assert (pace.permit(1.0, 0), pace.permit(1.0, 1)) == (Permit.REQUEST, Permit.NOTHING)
    for _ in range(6):
        pace.on_success(0.0, 0.0)
    assert pace.permit(1.0, 1) is Permit.REQUEST
    assert not pace.on_answer()


def test_the_next_outage_begins_with_short_pauses_again() -> None:
    """What was learned in the last one is no longer true."""
    pace = limiter()
    for second in range(8):
        pace.hold(float(second), "away", 1.0, was_probe=second > 0)
    pace.on_answer()
    pace.hold(100.0, "away", 1.0, was_probe=False)
    assert pace.pause_until() == 101.0


def test_a_hold_obeys_retry_after() -> None:
    """A 503 can carry one."""
    pace = limiter()
    pace.hold(0.0, "503", 0.0, was_probe=False, retry_after_seconds=20.0)
    assert pace.pause_until() == 20.0


def test_what_hung_before_a_hold_takes_no_room_after_it() -> None:
    """The limit is 1 then; three requests that never get an answer would stop everything until they time out."""
    pace = limiter(4)
    pace.hold(10.0, "away", 1.0, was_probe=False)
    pace.on_answer()
    assert pace.permit(20.0, 3) is Permit.NOTHING
    assert pace.permit(20.0, 3, hung=3) is Permit.REQUEST
    assert pace.permit(20.0, 4, hung=3) is Permit.NOTHING


def test_what_hangs_counts_towards_the_most() -> None:
    """However often holds begin and end: never more requests in flight than configured."""
    assert limiter(4).permit(20.0, 4, hung=4) is Permit.NOTHING


def test_a_probe_can_be_had_at_once() -> None:
    """When there is a reason to hope, nobody waits for the end of a pause."""
    pace = limiter()
    pace.hold(10.0, "away", 1.0, was_probe=False)
    assert pace.permit(10.1, 0) is Permit.NOTHING
    pace.probe_now()
    assert pace.permit(10.1, 0) is Permit.PROBE


def test_a_rising_latency_slows_down_before_anything_is_refused() -> None:
    """Once for what was in flight; and when the new latency is the usual one, there is nothing to avoid any more."""
    pace = limiter(8)
    for second in range(10):
        pace.on_success(second + 0.1, float(second))
    assert pace.limit == 8.0
    pace.on_success(20.5, 20.0)
    assert pace.limit == pytest.approx(7.2)
    pace.on_success(20.6, 20.1)
    assert pace.limit > 7.2
    for second in range(30, 200):
        pace.on_success(second + 0.5, float(second))
    assert pace.limit == 8.0


def test_small_requests_say_nothing_about_latency() -> None:
    """A probe takes a tenth of the time that a full batch takes, and the batch after it isn't slow."""
    pace = limiter(8)
    for second in range(10):
        pace.on_success(second + 0.01, float(second), share=0.001)
    pace.on_success(20.5, 20.0)
    assert pace.limit == 8.0


def test_a_hold_is_told_once_whatever_words_its_probes_find_for_it() -> None:
    """Behind a proxy an outage has four names in turn; another kind of fault is news."""
    pace = limiter()
    assert pace.hold(1.0, "connection reset", 1.0, was_probe=False, kind="unanswered")
    assert not pace.hold(2.0, "cannot connect", 1.0, was_probe=True, kind="unanswered")
    assert pace.held == "connection reset"
    assert pace.hold(3.0, "401 security_exception: no", 1.0, was_probe=True, kind="401 security_exception")
    assert pace.held == "401 security_exception: no"
    assert not pace.hold(4.0, "late", 1.0, was_probe=False, kind="unanswered")


def test_an_answer_and_a_hope_leave_no_pause() -> None:
    """Whatever was waited for, the next request may go at once."""
    pace = limiter()
    pace.hold(0.0, "away", 1.0, was_probe=False)
    pace.probe_now()
    assert pace.pause_until() == 0.0
    pace.hold(0.1, "away", 1.0, was_probe=True)
    pace.on_answer()
    assert pace.pause_until() == 0.0


def test_a_hold_knows_since_when_it_lasts() -> None:
    """Since the first failure, whatever its probes meet; and anew for the next one."""
    pace = limiter()
    pace.hold(3.0, "away", 1.0, was_probe=False)
    pace.hold(9.0, "away", 1.0, was_probe=True)
    assert pace.held_since == 3.0
    pace.on_answer()
    pace.hold(20.0, "away", 1.0, was_probe=False)
    assert pace.held_since == 20.0


def test_a_hold_waits_for_no_more_than_its_pause() -> None:
    """Where nobody asks for more: four fifths of the bound at least."""
    pace = limiter()
    pace.hold(0.0, "away", 0.0, was_probe=False)
    assert pace.pause_until() == pytest.approx(0.8)


def refused(pace: SendLimiter, now: float, share: float = 1.0) -> None:
    """Have a request refused that left a moment before."""
    assert pace.on_throttled(now, sent_at=now - 0.01, jitter=1.0, share=share)


@pytest.mark.parametrize("progress", ["a part was taken", "all was taken"])
def test_progress_makes_the_next_pause_short_again(progress: str) -> None:
    """Pauses grow only as long as nothing is taken at all."""
    pace = limiter()
    for second in (1.0, 10.0, 20.0):
        refused(pace, second)
    assert pace.pause_until() == 22.0
    if progress == "a part was taken":
        refused(pace, 30.0, share=0.1)
    else:
        pace.on_success(30.0, 29.9)
    refused(pace, 40.0)
    assert pace.pause_until() == 40.5


def test_what_leaves_in_the_moment_of_slowing_down_says_nothing_new() -> None:
    """It couldn't know."""
    pace = limiter(8)
    refused(pace, 10.0)
    assert not pace.on_throttled(10.5, sent_at=10.0, jitter=1.0, share=1.0)
    assert pace.limit == 4.0


def test_a_slow_answer_to_what_left_in_the_moment_of_slowing_down_says_nothing_new() -> None:
    """The same for latency; and the limit never falls below one."""
    pace = limiter(8)
    for second in range(1, 10):
        pace.on_success(second + 0.1, float(second))
    refused(pace, 20.0)
    assert pace.limit == 4.0
    pace.on_success(21.0, 20.0)
    assert pace.limit > 4.0
    for second in range(30, 70, 4):
        refused(pace, float(second))
    pace.on_success(81.0, 80.0)
    assert pace.limit == 1.0


def test_half_a_batch_tells_of_latency() -> None:
    """Less does not."""
    pace = limiter(8)
    for second in range(1, 10):
        pace.on_success(second + 0.1, float(second), share=0.5)
    pace.on_success(20.9, 20.0, share=0.49)
    assert pace.limit == 8.0
    pace.on_success(21.9, 21.0, share=0.5)
    assert pace.limit < 8.0


def test_429_alone_for_long_is_an_outage() -> None:
    """A full disk, a pool that stays full: five in a row at least, and ten seconds."""
    pace = limiter()
    for second in (1.0, 2.0, 3.0, 4.0):
        refused(pace, second)
    assert not pace.is_exhausted(60.0), "only four"
    refused(pace, 5.0)
    assert not pace.is_exhausted(10.9), "for less than ten seconds"
    assert pace.is_exhausted(11.0)
    refused(pace, 12.0, share=0.9)
    assert not pace.is_exhausted(60.0), "something was taken"
    for second in (13.0, 14.0, 15.0, 16.0, 17.0):
        refused(pace, second)
    assert not pace.is_exhausted(22.9), "it is reckoned from the first of the present row"
    assert pace.is_exhausted(23.0)


def test_429_in_a_hold_is_part_of_it() -> None:
    """Nothing is sent but probes then, and one of them doesn't end it by being refused for lack of room."""
    pace = limiter()
    pace.hold(0.0, "away", 1.0, was_probe=False)
    assert pace.is_exhausted(0.0)
