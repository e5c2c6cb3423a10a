"""`sidecar.library.handler_sink`: which verdict each message gets, whatever a function gives. None is guessed."""

from __future__ import annotations

import asyncio
from itertools import repeat
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar import ACK, DEAD_LETTER, DELAY, DISCARD, REQUEUE, Verdict
from sidecar.core.encoding.encoder import EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.scheduling.send_queue import SendQueue
from sidecar.core.stats.counters import Counters
from sidecar.library.handler_sink import HandlerSink
from sidecar.library.settings import load
from sidecar.pipeline.config import PipelineConfig
from tests.builders import ledger, message
from tests.drawing import drew

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sidecar.library.messages import Message

NOT_VERDICTS: list[Any] = [None, "ack", True, False, 0, "", ["ack"], {"kind": "ack"}, object, Verdict, (ACK,)]


class Settler:
    """Keeps what became of each message, by its tag."""

    def __init__(self) -> None:
        self.republisher = SimpleNamespace(delays_refused=lambda *_: False)
        self.fates: dict[int, tuple[str, str]] = {}

    def _note(self, tag: int, kind: str, why: str = "") -> None:
        assert tag not in self.fates
        self.fates[tag] = kind, why

    def ack(self, messages: list[Any]) -> None:
        """Note acks."""
        for one in messages:
            self._note(one.tag, "ack")

    def ack_as(self, messages: list[Any], kind: str) -> None:
        """Note others that are acked."""
        for one in messages:
            self._note(one.tag, kind)

    def dead_letter(self, failures: list[Any]) -> None:
        """Note dead letters."""
        for letter in failures:
            self._note(letter.message.tag, "dead-letter", f"{letter.reason}: {letter.detail}")

    def delay(self, failures: list[Any]) -> None:
        """Note delayed copies."""
        for letter in failures:
            self._note(letter.message.tag, "delay", f"{letter.reason}: {letter.detail}")

    async def requeue(self, messages: list[Any]) -> None:
        """Note what goes back."""
        for one in messages:
            self._note(one.tag, "requeue")


class Log:
    """Keeps the errors that are logged."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, dict[str, Any]]] = []

    def error(self, event: str, **details: Any) -> None:
        """Keep one."""
        self.errors.append((event, details))

    def debug(self, event: str, **_: Any) -> None:
        """Pass over it."""


def handled(process: Callable[..., Any], count: int = 3) -> tuple[list[str], list[str], Log]:
    """Have a batch of some messages handled; return what became of each, why, and what was logged."""
    settings = load(None, {"amqp_queue": "work", "on_exception": REQUEUE, "on_missing_verdict": DELAY})
    plan = PipelineConfig(encoder_config=EncoderConfig(index=Template("")))
    settling, log = Settler(), Log()
    place = SimpleNamespace(
        settling=settling, send_queue=SendQueue(10, 1_000), counters=Counters(), wall_clock=lambda: 0.0, log=log
    )
    calls = HandlerSink(plan, process, settings).employ(cast("Any", place))
    of = ledger(delivered=count)
    batch = SimpleNamespace(messages=[message(tag, of=of) for tag in range(1, count + 1)])
    asyncio.run(calls.carry_out(cast("Any", batch), probe=False))
    assert sorted(settling.fates) == list(range(1, count + 1))
    fates = [settling.fates[tag] for tag in range(1, count + 1)]
    return [kind for kind, _ in fates], [why for _, why in fates], log


def yielding(*values: object, ends_by: BaseException | None = None) -> Callable[[list[Message]], AsyncIterator[Any]]:
    """Return a function that yields values, and may raise in the end."""

    async def process(batch: list[Message]) -> AsyncIterator[Any]:
        assert batch
        for value in values:
            yield value
        if ends_by is not None:
            raise ends_by

    return process


def returning(value: object) -> Callable[[list[Message]], Any]:
    """Return a coroutine function that returns a value."""

    async def process(batch: list[Message]) -> Any:
        assert batch
        return value

    return process


@pytest.mark.parametrize("wrong", NOT_VERDICTS, ids=repr)
def test_after_a_value_that_is_not_a_verdict_no_verdict_is_used(wrong: object) -> None:
    """With an exception in the end, and without: those before it count, and no other is taken for its neighbour's."""
    fates, whys, log = handled(yielding(ACK, wrong, DEAD_LETTER, ends_by=ValueError("secret")))
    assert fates == ["ack", "requeue", "requeue"]
    assert [event for event, _ in log.errors] == ["handler.not_a_verdict", "handler.failed"]
    fates, whys, log = handled(yielding(ACK, wrong, ACK))
    assert fates == ["ack", "delay", "delay"]
    name = type(wrong).__name__
    told = f"value 2 of the batch is of type {name}, not a verdict"
    assert whys[1:] == [f"no-verdict: {told}; it and the verdicts after it are not used"] * 2
    assert log.errors == [("handler.not_a_verdict", {"detail": told, "messages": 2})]


def test_an_exception_leaves_the_verdicts_before_it() -> None:
    """And only those; its text is not told."""
    fates, _, log = handled(yielding(ACK, DISCARD, ends_by=ValueError("secret")))
    assert fates == ["ack", "discard", "requeue"]
    assert "secret" not in str(log.errors)


@pytest.mark.parametrize(
    "process",
    [
        yielding(ACK, ACK),
        yielding(ACK, None),
        yielding(ACK, ACK, ACK, ACK),
        yielding(ACK, ACK, None, ACK, ends_by=ValueError()),
        yielding(ACK, ACK, ACK, ACK, ends_by=ValueError()),
        returning([ACK, ACK]),
        returning([]),
        returning([ACK] * 4),
        returning(iter([ACK] * 4)),
    ],
)
def test_of_too_few_or_too_many_none_is_used(process: Callable[..., Any]) -> None:
    """Nobody knows which position is wrong, whatever else went wrong as well."""
    fates, whys, log = handled(process)
    assert fates == ["delay"] * 3
    assert set(whys) <= {f"no-verdict: {many} verdicts for 3 messages" for many in ("0", "2", "more than 3")}
    assert log.errors[-1][0] == "handler.miscounted"


@pytest.mark.parametrize(
    "value",
    [None, "ack", b"ack", 7, True, {ACK, DEAD_LETTER, DISCARD}, {"a": ACK}],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_verdicts_in_order_is_none(value: object) -> None:
    """Whoever forgets the return, or gives a set or a text, is told so; nothing of it is used."""
    fates, whys, _ = handled(returning(value))
    assert fates == ["delay"] * 3
    assert f"the function returned {type(value).__name__}" in whys[0]


def test_a_function_that_never_ends_its_verdicts_is_stopped() -> None:
    """One too many is enough to know; the generator is closed, so that its ``finally`` runs."""
    closed = []

    async def endless(batch: list[Message]) -> AsyncIterator[Verdict]:
        try:
            while batch:
                yield ACK
        finally:
            closed.append(True)

    assert handled(endless)[0] == ["delay"] * 3
    assert closed == [True]
    assert handled(returning(repeat(ACK)))[0] == ["delay"] * 3


def test_one_verdict_for_all_and_other_ways_to_give_them() -> None:
    """A coroutine's own, a list, a generator, or an asynchronous one that a coroutine returns."""

    def lazily(verdicts: list[Verdict]) -> Iterator[Verdict]:
        yield from verdicts
        raise ValueError

    async def handed_on(batch: list[Message]) -> Any:
        return yielding(ACK, REQUEUE, ACK)(batch)

    assert handled(returning(DISCARD))[0] == ["discard"] * 3
    assert handled(returning([ACK, DEAD_LETTER, ACK]))[0] == ["ack", "dead-letter", "ack"]
    assert handled(returning(lazily([ACK, DISCARD])))[0] == ["ack", "discard", "requeue"]
    assert handled(handed_on)[0] == ["ack", "requeue", "ack"]


def test_a_cleanup_that_fails_is_an_exception_too() -> None:
    """What is raised while the generator is closed ends no pipeline."""

    async def process(batch: list[Message]) -> AsyncIterator[Verdict]:
        try:
            while batch:
                yield ACK
        finally:
            raise ValueError("secret")

    fates, _, log = handled(process)
    assert fates == ["requeue"] * 3
    assert log.errors[-1][0] == "handler.failed"


@pytest.mark.parametrize("make", [
    lambda: Verdict("nack"),  # type: ignore[arg-type]
    lambda: Verdict("delay", seconds=1e9),
    lambda: Verdict("delay", seconds=float("nan")),
    lambda: Verdict("ack", seconds=1.0),
    lambda: DEAD_LETTER.because(None),  # type: ignore[arg-type]
    lambda: DEAD_LETTER.because("reason", 7),  # type: ignore[arg-type]
])  # fmt: skip
def test_a_verdict_that_can_not_be_carried_out_is_refused_where_it_is_made(make: Callable[[], Verdict]) -> None:
    """In the function's own code, where the exception costs only messages without a verdict."""
    with pytest.raises((ValueError, TypeError)):
        make()


def test_a_reason_holds_what_a_header_can() -> None:
    """Half a surrogate pair, as a JSON body may hold it, is no UTF-8."""
    assert DEAD_LETTER.because("no", "x \ud83d").detail == "x ?"


values = st.sampled_from([ACK, DEAD_LETTER, DELAY, REQUEUE, DISCARD, *NOT_VERDICTS])


@pytest.mark.draws(
    "as many", "too few", "too many", "it fails", "it fails after too many", "no verdict among them", "all verdicts",
    "nothing", "at once",
)  # fmt: skip
@given(st.lists(values, max_size=6), st.integers(1, 5), st.booleans(), st.booleans())
def test_no_message_gets_a_verdict_that_was_not_given_for_it(
    script: list[Any], count: int, fails: bool, at_once: bool
) -> None:
    """Whatever a function gives: each message ends once, by the verdict of its position or by one of the defaults."""
    if at_once:
        fails, process = False, returning(script)
    else:
        process = yielding(*script, ends_by=ValueError() if fails else None)
    fates, _, _ = handled(process, count)
    prefix: list[str] = []
    for value in script:
        if type(value) is not Verdict:
            break
        prefix.append(value.kind)
    if len(script) > count or (len(script) < count and not fails):
        prefix = []
    otherwise = "requeue" if fails and len(script) <= count else "delay"
    drew("nothing", not script)
    drew("at once", at_once)
    drew("as many" if len(script) == count else "too many" if len(script) > count else "too few", not fails)
    drew("it fails after too many" if len(script) > count else "it fails", fails)
    drew("all verdicts" if all(type(value) is Verdict for value in script) else "no verdict among them", script)
    assert fates == prefix + [otherwise] * (count - len(prefix))
