"""``SIDECAR_TRANSFORM``: what somebody's own code gives, and what becomes of it."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dotenv import dotenv_values

from sidecar.config.settings import Settings
from sidecar.config.settings import load as load_settings
from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.template import Template
from sidecar.core.encoding.transform import TransformError
from sidecar.errors import ConfigError
from sidecar.library.transforming import hook, load
from tests.builders import message, properties

if TYPE_CHECKING:
    from sidecar.core.message import Message as Delivery

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "transform"


def compose(function: Any, delivery: Delivery, **encoder_config: Any) -> tuple[list[bytes], list[tuple[str, str, str]]]:
    """Return the lines that are made of a message, and why others aren't."""
    hooked = hook(function)
    made = EncoderConfig(index=Template("docs"), transform=hooked.transform, prepare=hooked.prepare, **encoder_config)
    if hooked.prepare is not None:

        async def wait() -> None:
            await hooked.prepare([delivery])

        asyncio.run(wait())
    encoded, rejections = BulkEncoder(made, lambda: "made").encode([delivery], 0.0)
    lines = [one.action_line + (one.source or b"") for one in encoded]
    return lines, [(reject.reason, reject.detail, reject.error_type) for reject in rejections]


def delivered(body: bytes = b"{}", message_id: str = "m") -> Delivery:
    """Return a message."""
    return message(body=body, raw=properties(message_id=message_id.encode()))


@pytest.mark.parametrize("given", [{"n": 1}, '{"n":1}', b'{"n":1}', [{"n": 1}], ({"n": 1},)])
def test_one_document_has_the_id_of_its_message(given: object) -> None:
    """Whatever it comes as."""
    assert compose(lambda _: given, delivered()) == ([b'{"index":{"_id":"m"}}\n{"n":1}'], [])


def test_several_documents_have_ids_of_their_own() -> None:
    """By their places, as with SIDECAR_SPLIT; templates look into each."""
    lines, rejections = compose(
        lambda shown: [{"n": number, "of": shown.message_id} for number in range(2)],
        delivered(),
        id_mode="template",
        id=Template("{message_id}/{item}/{body.n}"),
    )
    assert lines == [
        b'{"index":{"_id":"m/%d/%d"}}\n{"n":%d,"of":"m"}' % (number, number, number) for number in range(2)
    ]
    assert not rejections


@pytest.mark.parametrize("given", [None, [], ()])
def test_nothing_is_neither_a_document_nor_a_fault(given: object) -> None:
    """A message of which nothing is to be stored has no reason to be dead-lettered."""
    assert compose(lambda _: given, delivered()) == ([], [("", "", "")])


def failing(_: object) -> object:
    """Fail, quoting what must not be told."""
    raise LookupError("secret")


async def failing_later(_: object) -> object:
    """Fail as well."""
    await asyncio.sleep(0)
    raise LookupError("secret")


async def cancelling(_: object) -> object:
    """Let a cancellation out that is nobody's but its own."""
    raise asyncio.CancelledError("secret")


@pytest.mark.parametrize(
    ("function", "kind"),
    [(failing, "LookupError"), (failing_later, "LookupError"), (cancelling, "CancelledError")],
)
def test_an_exception_is_a_reject_with_its_type(function: Any, kind: str) -> None:
    """And its place, but not its text: that may quote the message."""
    lines, ((reason, detail, error_type),) = compose(function, delivered())
    assert (lines, reason, error_type) == ([], "transform-failed", kind)
    assert detail.startswith(f"{kind} at test_transform.py:")
    assert detail.endswith(f"in {function.__name__}")


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        (7, "TypeError", "the function gave int, which is not a document"),
        ([None], "TypeError", "the function gave NoneType, which is not a document"),
        ([[]], "TypeError", "the function gave list, which is not a document"),
        ((number for number in ()), "TypeError", "the function gave generator, which is not a document"),
        ({"n": object()}, "TypeError", "can't be written as JSON"),
        ({"n": {1}}, "TypeError", "set"),
        ({1: 2}, "TypeError", "a name in an object must be a text, not int"),
        ('{"a":"\ud83d"}', "UnicodeEncodeError", "half of a surrogate pair"),
    ],
)
def test_what_is_no_document_is_a_reject(given: object, kind: str, told: str) -> None:
    """The fault is the code's, and is told so: what it gave, and not a place within the sidecar."""
    _, ((reason, detail, error_type),) = compose(lambda _: given, delivered())
    assert (reason, error_type) == ("transform-failed", kind)
    assert told in detail
    assert ".py" not in detail


@pytest.mark.parametrize(
    ("body", "encoding", "told"),
    [
        (b'{"secret"', b"", "the body is not valid JSON: at byte 9"),
        (b'{"a":"\xff"}', b"", "the body is not UTF-8: byte 6 of 9"),
        (b"secret", b"gzip", "the body is not gzip data, as its content_encoding says"),
        (b"secret", b"br", "the content_encoding 'br' is unknown; gzip and deflate are undone"),
    ],
)
def test_a_body_that_code_cannot_read_is_told_with_the_reason(body: bytes, encoding: bytes, told: str) -> None:
    """By our own words, which quote nothing, and by the place in the user's code, not in the sidecar."""

    def reads(shown: Any) -> object:
        return shown.json()

    raw = properties(content_encoding=encoding) if encoding else properties()
    _, ((reason, detail, error_type),) = compose(reads, message(body=body, raw=raw))
    assert (reason, error_type) == ("transform-failed", "BodyError")
    assert detail.startswith(f"{told} (test_transform.py:")
    assert detail.endswith(" in reads)")


def test_a_document_is_checked_as_any_other() -> None:
    """Bytes that are no object never reach a request."""
    _, ((reason, _, _),) = compose(lambda _: b"[1]", delivered())
    assert reason == "malformed"


def test_asynchronous_code_works_on_a_chunk_at_once() -> None:
    """All calls are under way before the first ends."""
    barrier = asyncio.Barrier(3)

    async def together(shown: Any) -> dict[str, Any]:
        await barrier.wait()
        return {"of": shown.message_id}

    hooked = hook(together)
    deliveries = [delivered(message_id=f"m{number}") for number in range(3)]

    async def main() -> None:
        assert hooked.prepare is not None
        await hooked.prepare(deliveries)

    asyncio.run(main())
    assert [hooked.transform(delivery) for delivery in deliveries] == [
        [b'{"of":"m%d"}' % number] for number in range(3)
    ]


@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_a_compressed_body_is_unpacked_up_to_the_limit_given(is_asynchronous: bool) -> None:
    """One byte more is a dead letter, whichever way the function is called."""

    def shown(one: Any) -> dict[str, Any]:
        return {"bytes": len(one.content())}

    async def shown_later(one: Any) -> dict[str, Any]:
        return shown(one)

    content = b"x" * 5_000
    raw = properties(content_encoding=b"gzip", message_id=b"m")
    for limit, refused in ((5_000, False), (4_999, True)):
        hooked = hook(shown_later if is_asynchronous else shown, limit)
        delivery = message(body=gzip.compress(content), raw=raw)
        if hooked.prepare is not None:
            asyncio.run(hooked.prepare([delivery]))
        if refused:
            with pytest.raises(TransformError):
                hooked.transform(delivery)
        else:
            assert hooked.transform(delivery) == [b'{"bytes":5000}']


def test_what_cannot_be_imported_is_told() -> None:
    """Which of module and function it is."""
    for reference, why in (
        ("nosuchmodule:f", "nosuchmodule"),
        ("json:nosuch", "nosuch"),
        ("json:__name__", "function"),
    ):
        with pytest.raises(ConfigError, match=f"SIDECAR_TRANSFORM: {reference}.*{why}"):
            load(reference)


def test_settings_that_contradict_it() -> None:
    """Two that make documents, and what is no reference."""
    base = {"SIDECAR_AMQP_QUEUE": "q", "SIDECAR_INDEX": "i"}
    with pytest.raises(ConfigError, match="SIDECAR_SPLIT would too"):
        load_settings({**base, "SIDECAR_SPLIT": "array", "SIDECAR_TRANSFORM": "m:f"})
    with pytest.raises(ConfigError, match="must be module:function"):
        load_settings({**base, "SIDECAR_TRANSFORM": "m.f"})
    settings: Settings = load_settings({**base, "SIDECAR_TRANSFORM": "a.b:f", "SIDECAR_ID": "{message_id}-{item}"})
    assert settings.transform == "a.b:f"


def test_the_example_can_be_explained() -> None:
    """`sidecar explain` calls the code, from the folder in which it is started."""
    environment = {name: text for name, text in dotenv_values(EXAMPLE / "orders.env").items() if text is not None}
    told = []
    for body in (
        b'{"state":"paid","customer":7,"lines":[{"sku":"a","price":2,"count":3},{"sku":"b","price":1,"count":1}]}',
        b'{"state":"draft"}',
        b"{}",
    ):
        done = subprocess.run(
            [sys.executable, "-m", "sidecar", "explain", "--message-id", "o1", "-"],
            input=body,
            cwd=EXAMPLE,
            env=environment | {"PYTHONPATH": str(EXAMPLE.parents[1])},
            capture_output=True,
            check=False,
        )
        told.append(done.stdout.decode() + done.stderr.decode())
    assert '{"index":{"_id":"o1-1"}}\n{"order":"o1","customer":7,"sku":"b","amount":1}' in told[0]
    assert "makes no document of it" in told[1]
    assert "transform-failed: " in told[2]
    assert "KeyError at orders.py:" in told[2]


def test_an_object_with_an_asynchronous_call_is_awaited() -> None:
    """What it gives was a coroutine that is no document."""

    class Hooked:
        async def __call__(self, shown: Any) -> dict[str, Any]:
            return {"n": len(shown.body)}

    assert compose(Hooked(), delivered()) == ([b'{"index":{"_id":"m"}}\n{"n":2}'], [])
