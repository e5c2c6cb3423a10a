"""`sidecar.core.flow.prefetch_window`."""

from __future__ import annotations

from sidecar.core.flow.prefetch_window import MESSAGE_BYTES, PrefetchWindow

MIB = 1 << 20


def window(limit_bytes: int = 64 * MIB, max_items: int = 6_000, batch_items: int = 1_000) -> PrefetchWindow:
    """Return a window with the default settings."""
    return PrefetchWindow(limit_bytes, max_items, batch_items)


def test_full_at_the_limit_objects_included() -> None:
    """A hundred bytes of body are a kilobyte of memory."""
    bounds = window(limit_bytes=10 * (100 + MESSAGE_BYTES))
    assert not bounds.full(9 * 100, 9)
    assert bounds.full(10 * 100, 10)


def test_one_message_is_always_let_in() -> None:
    """One above the limit can't wait for room that will never be; with it, it is full."""
    bounds = window(limit_bytes=1_000)
    assert not bounds.full(0, 0)
    assert bounds.full(5_000, 1)


def test_reading_goes_on_at_half() -> None:
    """Not after each message, or each would cost two system calls."""
    bounds = window(limit_bytes=100 * MESSAGE_BYTES)
    assert not bounds.has_headroom(0, 51)
    assert bounds.has_headroom(0, 50)


def test_nothing_known_is_no_bound() -> None:
    """The first consumer asks for what is configured: the socket bounds the memory."""
    assert window().prefetch(0, 0) == 6_000


def test_a_prefetch_fits_into_the_room_that_is_left() -> None:
    """By the mean size of what came, with what is held subtracted; always one at least."""
    bounds = window()
    bounds.observe(16, 16 * 4 * MIB)
    assert bounds.prefetch(0, 0) == 15
    assert bounds.prefetch(32 * MIB, 8) == 7
    assert bounds.prefetch(70 * MIB, 17) == 1


def test_small_messages_have_the_prefetch_that_is_configured() -> None:
    """The limit is far away from them."""
    bounds = window()
    bounds.observe(1_000, 420_000)
    assert bounds.prefetch(2 * MIB, 5_000) == 6_000


def test_the_mean_follows_what_comes() -> None:
    """After some thousand small messages the large ones of before are forgotten."""
    bounds = window()
    bounds.observe(10, 10 * 8 * MIB)
    assert bounds.prefetch(0, 0) == 7
    for _ in range(20):
        bounds.observe(1_000, 420_000)
    assert bounds.prefetch(0, 0) == 6_000


def test_after_a_hold_the_window_is_one_batch_and_grows() -> None:
    """One batch finds out whether Elasticsearch is well again."""
    bounds = window()
    bounds.shrink()
    seen = []
    for _ in range(3):
        seen.append(bounds.prefetch(0, 0))
        bounds.grow()
    assert seen == [1_000, 4_000, 6_000]


def test_a_narrow_window_holds_more_than_one_item() -> None:
    """With a batch of one, an item that Elasticsearch doesn't survive would look like an outage for ever."""
    bounds = window(batch_items=1, max_items=6)
    bounds.shrink()
    assert bounds.prefetch(0, 0) == 6
    bounds = window(batch_items=1, max_items=60)
    bounds.shrink()
    assert bounds.prefetch(0, 0) == 10


def test_a_new_consumer_is_worth_while_for_twice_as_much_or_all() -> None:
    """Each change costs two round trips, and the place in the line of a single active consumer."""
    bounds = window()
    assert bounds.should_grow(3_000, 0, 0)
    assert bounds.should_grow(5_000, 0, 0)
    assert not bounds.should_grow(6_000, 0, 0)
    bounds.observe(16, 16 * 4 * MIB)
    assert not bounds.should_grow(10, 0, 0)
    assert bounds.should_grow(7, 0, 0)


def test_the_mean_weighs_messages_not_chunks() -> None:
    """A thousand messages are the memory: half as many count half, and more than that count alone."""
    bounds = window(limit_bytes=1_000 * (2_000 + MESSAGE_BYTES))
    bounds.observe(10, 10 * 1_000)
    bounds.observe(500, 500 * 3_000)
    assert bounds.prefetch(0, 0) == 1_000
    bounds.observe(5_000, 5_000 * (2 * 2_000 + MESSAGE_BYTES))
    assert bounds.prefetch(0, 0) == 500


def test_what_is_held_takes_room_by_its_number_too() -> None:
    """Objects are memory."""
    bounds = window(limit_bytes=100 * (1_000 + MESSAGE_BYTES))
    bounds.observe(10, 10 * 1_000)
    assert bounds.prefetch(50 * 1_000, 50) == 50


def test_exactly_twice_as_much_is_worth_while() -> None:
    """Though it isn't all."""
    bounds = window()
    bounds.shrink()
    assert bounds.should_grow(500, 0, 0)
    assert not bounds.should_grow(501, 0, 0)
