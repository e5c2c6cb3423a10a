"""`sidecar dlq` as a user sees it, over a dead-letter queue in memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from click.testing import CliRunner, Result

from sidecar.amqp.dead_letter_queue import REFRESH_AT_DELIVERIES
from sidecar.cli import cli, dlq
from sidecar.config.settings import PREFIX
from sidecar.core.wire import properties as core
from sidecar.errors import BrokerError
from tests.builders import ledger, long_string, message, properties, without_settings

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.core.message import Message
    from sidecar.ports import OutboundMessage

REFUSED = "unroutable: 312 NO_ROUTE"


class FakeBox:
    """A dead-letter queue: what is acked is gone, everything else stays, and giving back is counted."""

    def __init__(self) -> None:
        self.letters: list[tuple[bytes, bytes]] = []
        self.missing_queues: list[str] = []
        self.published: list[OutboundMessage] = []
        self.properties_limit = 1 << 17
        self.user = "guest"
        self.queue = ""
        self.opened = 0
        self.failure = ""
        self.arriving = 0

    def add(self, body: bytes = b"{}", **headers: bytes) -> None:
        """Put a letter in."""
        values = {"reason": b"rejected", "queue": b"work", "failed-at": b"2026-01-01T00:00:00.000Z", **headers}
        fields = [(b"sidecar-" + name.replace("_", "-").encode(), long_string(value)) for name, value in values.items()]
        self.letters.append((properties(fields, message_id=b"m%d" % len(self.letters)), body))

    async def open(self, _: object, queue: str, __: object) -> FakeBox:
        """Open it."""
        if self.failure:
            raise BrokerError(self.failure)
        self.queue = queue
        self.opened += 1
        for _ in range(self.arriving if self.opened > 1 else 0):
            self.add()
        await self.begin_again()
        return self

    async def begin_again(self) -> None:
        """Count anew."""
        self.ready = len(self.letters)
        self.ledger = ledger(self.queue)
        self._left = list(self.letters)

    def require_open(self) -> None:
        """It is."""

    async def give_back(self) -> None:
        """What was acked is gone already."""

    async def add_consumer(self, letters: int) -> None:
        """Have letters delivered."""

    async def receive(self) -> list[Message]:
        """Return all."""
        first, self.ledger.next_tag = self.ledger.next_tag, self.ledger.next_tag + len(self._left)
        self.ledger.open_new()
        chunk = [
            message(first + at, body, of=self.ledger, raw=raw, route=b"\0\1d")
            for at, (raw, body) in enumerate(self._left)
        ]
        self._left = []
        return chunk

    def acknowledge(self, messages: list[Message]) -> None:
        """Remove letters."""
        for one in messages:
            self.letters.remove((one.properties, one.body))

    async def publish(self, copies: list[OutboundMessage]) -> list[str | None]:
        """Take copies, but for queues that are missing; those for this queue become letters."""
        answers = [REFUSED if copy.routing_key.decode() in self.missing_queues else None for copy in copies]
        self.published += [copy for copy, answer in zip(copies, answers, strict=True) if answer is None]
        self.letters += [(copy.properties, copy.body) for copy in copies if copy.routing_key.decode() == self.queue]
        return answers

    async def close(self) -> None:
        """Close it."""


class Called(Protocol):
    """Runs the command in an environment of nothing but what is given."""

    def __call__(self, *arguments: str, answer: str | None = None, **settings: str) -> Result:
        """Run it."""
        ...


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch) -> FakeBox:
    made = FakeBox()
    monkeypatch.setattr(dlq, "open_dead_letter_queue", made.open)
    return made


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Called:
    monkeypatch.chdir(tmp_path)
    nothing = without_settings()

    def call(*arguments: str, answer: str | None = None, **settings: str) -> Result:
        environment = {PREFIX + name: value for name, value in {"AMQP_QUEUE": "work", **settings}.items()}
        return CliRunner().invoke(cli, ["dlq", *arguments], env=nothing | environment, input=answer)

    return call


def document(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_the_queue_is_that_of_the_settings_or_is_named(box: FakeBox, called: Called) -> None:
    """With --queue nothing else needs to be known."""
    for arguments, settings, queue in (
        ((), {}, "work.dead"),
        ((), {"DEAD_LETTER_ROUTING_KEY": "graves", "AMQP_QUEUE": "a,b"}, "graves"),
        (("--queue", "other"), {"AMQP_QUEUE": "a,b", "DEAD_LETTER_EXCHANGE": "x"}, "other"),
        (("--queue", "other"), {"AMQP_QUEUE": ""}, "other"),
    ):
        assert document(called("list", "--format", "json", *arguments, **settings))["queue"] == queue


@pytest.mark.parametrize("settings", [{"AMQP_QUEUE": "a,b"}, {"DEAD_LETTER_EXCHANGE": "x"}])
def test_a_queue_that_is_not_clear_is_asked_for(box: FakeBox, called: Called, settings: dict[str, str]) -> None:
    """Nothing is looked at by a guess."""
    result = called("list", **settings)
    assert (result.exit_code, "--queue" in result.stderr, box.opened) == (2, True, 0)


def test_what_letters_hold_does_nothing_to_a_terminal(box: FakeBox, called: Called) -> None:
    """An id, an index or a body with escape sequences is shown, not obeyed; nor is rich's markup."""
    box.add(b"\x1b[2Jbody", index=b"\x1b]0;title\x07[bold]i[/bold]", error_type=b"\x9b1m", id=b"\x00\r\xe2\x80\xae")
    for result in (called("list"), called("show", "1"), called("replay", "--dry-run")):
        assert result.exit_code == 0, result.output
        assert not set("\x1b\x9b\x07\x00\r\u202e") & set(result.output)
    assert "\\x1b]0;title\\x07[bold]i[/bold]" in called("list").output


def test_a_broker_that_fails_is_told_in_one_line(box: FakeBox, called: Called) -> None:
    """Which queue, and why; no traceback."""
    box.failure = "nobody is there"
    for name in ("list", "replay", "purge"):
        result = called(name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == "sidecar: 'work.dead': nobody is there\n"


def test_an_empty_queue_is_no_failure(box: FakeBox, called: Called) -> None:
    """And nobody is asked whether nothing should be removed."""
    assert "No dead letters in work.dead" in called("list").stdout
    assert "Replayed 0 letters" in called("replay").stdout
    assert document(called("purge", "--format", "json")) == {"queue": "work.dead", "purged": 0}


def test_an_unroutable_replay_says_what_to_do(box: FakeBox, called: Called) -> None:
    """And the letters stay."""
    box.add(queue=b"gone")
    box.add()
    box.missing_queues = ["gone"]
    result = called("replay")
    assert result.exit_code == 1
    assert "Replayed 1 letters of work.dead to work." in result.stdout
    assert "create the queue 'gone'" in result.stdout
    assert len(box.letters) == 1


def test_skipped_letters_are_told_and_are_no_failure(box: FakeBox, called: Called) -> None:
    """A script that replays what can be replayed is done."""
    box.add(replays=b"")
    raw = properties([(b"sidecar-queue", long_string(b"work")), (b"sidecar-replays", core.number_value(1))])
    box.letters.append((raw, b"{}"))
    result = called("replay", "--max-replays", "1")
    assert result.exit_code == 0
    assert "Skipped 1: it was replayed once and came back (--max-replays 1)." in result.stdout
    assert len(box.published) == 1


def test_letters_that_were_looked_at_often_are_renewed(box: FakeBox, called: Called) -> None:
    """Before RabbitMQ would drop them; those of a queue that isn't worn are left alone."""

    def worn(deliveries: int) -> None:
        raw = properties([(b"k", b"V"), (b"x-delivery-count", core.number_value(deliveries))], message_id=b"m")
        box.letters = [(raw, b"1"), (raw, b"2")]

    worn(REFRESH_AT_DELIVERIES - 2)
    assert called("list").exit_code == 0
    assert box.published == []
    worn(REFRESH_AT_DELIVERIES - 1)
    assert called("list").exit_code == 0
    assert [copy.body for copy in box.published] == [b"1", b"2"]
    assert [body for _, body in box.letters] == [b"1", b"2"]
    assert all(core.header(raw, b"x-delivery-count") is None for raw, _ in box.letters)


@pytest.mark.parametrize(
    ("arguments", "answer", "left"),
    [
        (("list",), None, 3),
        (("list", "--reason", "no*"), None, 3),
        (("show", "3"), None, 3),
        (("show", "9"), None, 3),
        (("show", "--id", "nobody"), None, 3),
        (("replay", "--dry-run"), None, 3),
        (("replay", "--reason", "no*"), None, 3),
        (("replay", "--reason", "malformed"), None, 2),
        (("purge", "--reason", "no*", "--yes"), None, 3),
        (("purge", "--reason", "no*"), None, 3),
        (("purge", "--reason", "malformed"), "n\n", 3),
        (("purge", "--reason", "malformed", "--yes"), None, 2),
    ],
)
def test_no_command_wears_letters_out(
    box: FakeBox, called: Called, arguments: tuple[str, ...], answer: str | None, left: int
) -> None:
    """Whether it finds what it looks for or not: it renews the letters that it looked at and leaves."""
    for number, reason in enumerate((b"rejected", b"rejected", b"malformed")):
        fields = [
            (b"sidecar-reason", long_string(reason)),
            (b"sidecar-queue", long_string(b"work")),
            (b"x-delivery-count", core.number_value(REFRESH_AT_DELIVERIES - 1)),
        ]
        box.letters.append((properties(fields, message_id=b"m%d" % number), b"%d" % number))
    called(*arguments, answer=answer)
    assert len(box.letters) == left
    assert [body for raw, body in box.letters if core.header(raw, b"x-delivery-count") is not None] == []


def test_letters_that_cannot_be_renewed_are_told(box: FakeBox, called: Called) -> None:
    """A full queue refuses the copies; whoever goes on looking would lose them."""
    box.letters = [(properties([(b"x-delivery-count", core.number_value(REFRESH_AT_DELIVERIES))]), b"1")]
    box.missing_queues = ["work.dead"]
    result = called("list")
    assert "drops them at its delivery limit" in result.stderr


def test_a_look_that_fails_to_ask_removes_nothing(box: FakeBox, called: Called) -> None:
    """No answer is no yes; --yes is one."""
    box.add()
    box.add(reason=b"malformed")
    assert called("purge", answer="").exit_code == 1
    assert called("purge", "--reason", "malformed", answer="n\n").exit_code == 1
    assert len(box.letters) == 2
    result = called("purge", "--reason", "malformed", answer="y\n")
    assert "Remove 1 letters from work.dead for good?" in result.stderr
    assert len(box.letters) == 1
    assert document(called("purge", "--yes", "--format", "json"))["purged"] == 1
    assert box.letters == []


def test_what_arrives_after_the_question_is_not_removed(box: FakeBox, called: Called) -> None:
    """Whoever said yes to three didn't mean a fourth."""
    for _ in range(3):
        box.add()
    box.arriving = 2
    assert document(called("purge", "--yes", "--format", "json"))["purged"] == 3
    assert [core.short(raw, "message_id") for raw, _ in box.letters] == [b"m3", b"m4"]
