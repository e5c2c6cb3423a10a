"""The properties of a queue, read from what RabbitMQ refuses, and what is made of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from sidecar.amqp.queue_properties import QueueProperties, correct, read_properties
from sidecar.amqp.queue_rules import dead_letter_findings, delivery_limit, queue_findings

if TYPE_CHECKING:
    from aiormq.exceptions import AMQPError

WISHED: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
GUESS = QueueProperties(arguments=WISHED)


def refusal(name: str, current: str, received: str = "none") -> str:
    """Return what RabbitMQ 3.10 to 4.3 say."""
    return (
        f"PRECONDITION_FAILED - inequivalent arg '{name}' for queue 'q' in vhost '/': "
        f"received {received} but current is {current}"
    )


@pytest.mark.parametrize(
    ("name", "current", "expected"),
    [
        ("x-expires", "the value '60000' of type 'signedint'", {**WISHED, "x-expires": 60000}),
        ("x-max-length-bytes", "the value '100000000000' of type 'long'", {**WISHED, "x-max-length-bytes": 10**11}),
        ("x-single-active-consumer", "the value 'true' of type 'bool'", {**WISHED, "x-single-active-consumer": True}),
        ("x-dead-letter-exchange", "the value 'it's' of type 'longstr'", {**WISHED, "x-dead-letter-exchange": "it's"}),
        ("x-delivery-limit", "'7'", {**WISHED, "x-delivery-limit": 7}),
        ("x-queue-type", "'classic'", {**WISHED, "x-queue-type": "classic"}),
        ("x-delivery-limit", "none", {"x-queue-type": "quorum"}),
    ],
)
def test_a_refusal_corrects_one_argument(name: str, current: str, expected: dict[str, Any]) -> None:
    """In the type that RabbitMQ names, or in that of the guess."""
    corrected = correct(GUESS, refusal(name, current))
    assert corrected is not None
    assert corrected.arguments == expected


@pytest.mark.parametrize("name", ["auto_delete", "durable", "exclusive"])
def test_a_refusal_corrects_a_flag(name: str) -> None:
    """Flags come without a type."""
    for text, value in (("'true'", True), ("'false'", False)):
        corrected = correct(GUESS, refusal(name, text, "'x'"))
        assert getattr(corrected, name) is value


@pytest.mark.parametrize(
    "text",
    [
        "PRECONDITION_FAILED - something else",
        refusal("auto_delete", "'perhaps'"),
        refusal("x-expires", "the value 'soon' of type 'signedint'"),
        refusal("x-expires", "the value '1.5' of type 'double'"),
        refusal("x-expires", "unreadable"),
    ],
)
def test_what_cannot_be_read_is_unknown(text: str) -> None:
    """Never a wrong value."""
    assert correct(GUESS, text) is None


def asked(texts: list[str], *, error: type[AMQPError] = ChannelPreconditionFailed) -> QueueProperties | None:
    """Return what is read from a broker that refuses with these texts in turn, and then accepts."""
    left = list(texts)

    async def ask(_: object) -> AMQPError | None:
        return error(left.pop(0)) if left else None

    return asyncio.run(read_properties(ask, "q", WISHED))


def test_guesses_go_on_until_the_broker_accepts_one() -> None:
    """All differences, not only the first."""
    found = asked([
        refusal("auto_delete", "'true'", "'false'"),
        refusal("x-expires", "the value '1000' of type 'signedint'"),
        refusal("x-delivery-limit", "'3'", "'1000000000'"),
    ])  # fmt: skip
    assert found == QueueProperties(
        auto_delete=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 3, "x-expires": 1000}
    )


def test_without_the_permission_nothing_is_known() -> None:
    """As when the queue was deleted in between, or when RabbitMQ never accepts."""
    assert asked(["ACCESS_REFUSED - no"], error=ChannelAccessRefused) is None
    assert asked([refusal("x-expires", "the value '1000' of type 'signedint'")] * 100) is None


def severities(*, version: int = 3, **properties: Any) -> list[str]:
    found = queue_findings("q", QueueProperties(**properties), version)
    assert all(finding.where == "queue 'q'" and finding.fix for finding in found)
    return [finding.severity for finding in found]


def test_a_queue_as_the_sidecar_declares_it_needs_no_word() -> None:
    """Neither with RabbitMQ 3 nor with 4."""
    assert severities(arguments=WISHED) == severities(arguments=WISHED, version=4) == []


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"auto_delete": True}, ["problem"]),
        ({"exclusive": True}, ["problem"]),
        ({"arguments": {"x-queue-type": "stream"}}, ["problem"]),
        ({"arguments": {"x-expires": 60_000}}, ["warning"]),
        ({"arguments": {"x-expires": 7 * 86_400_000}}, ["note"]),
        ({"durable": False}, ["warning"]),
        ({"arguments": {"x-max-length": 9}}, ["warning"]),
        ({"arguments": {"x-max-length-bytes": 9, "x-overflow": "reject-publish"}}, ["note"]),
        ({"arguments": {"x-message-ttl": 9}}, ["warning"]),
        ({"arguments": {"x-max-priority": 9}}, ["note"]),
        ({"arguments": {"x-single-active-consumer": True}}, ["note"]),
        ({"arguments": {"x-single-active-consumer": False}}, []),
        ({"arguments": {"x-queue-type": "quorum", "x-delivery-limit": 5}}, ["warning"]),
        ({"arguments": {"x-queue-type": "quorum", "x-delivery-limit": 99}}, ["warning"]),
        ({"arguments": {"x-queue-type": "quorum", "x-delivery-limit": 100}}, []),
        ({"arguments": {"x-queue-type": "quorum", "x-delivery-limit": -1}}, []),
        ({"arguments": {"x-queue-mode": "lazy"}}, []),
        ({"arguments": {"x-dead-letter-exchange": ""}}, ["note"]),
    ],
)
def test_each_property_is_judged(properties: dict[str, Any], expected: list[str]) -> None:
    """Only what loses messages by the sidecar's own doing is a problem."""
    assert severities(**properties) == expected


@pytest.mark.parametrize("version", [0, 3, 4])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("x-delivery-limit", "redelivered more than 0 times"),
        ("x-expires", "after 0 s without a consumer"),
        ("x-max-length", "(x-max-length=0, drop-head)"),
        ("x-max-length-bytes", "(x-max-length-bytes=0, drop-head)"),
        ("x-message-ttl", "expire 0 s after"),
    ],
)
def test_a_limit_of_zero_is_the_tightest_not_none(name: str, told: str, version: int) -> None:
    """What loses messages at once is warned about as what loses them later."""
    queue = QueueProperties(arguments={**WISHED, name: 0})
    (found,) = queue_findings("q", queue, version)
    assert found.severity == "warning"
    assert told in found.what


@pytest.mark.parametrize("name", ["x-expires", "x-message-ttl", "x-max-length", "x-max-length-bytes"])
def test_a_dead_letter_queue_with_a_limit_of_zero_keeps_nothing(name: str) -> None:
    """And that is told."""
    (found,) = dead_letter_findings("d", QueueProperties(arguments={name: 0}))
    assert found.what == f"dead letters can be lost from it: {name}=0"


def test_a_quorum_queue_has_a_delivery_limit_by_default_since_rabbitmq_4() -> None:
    """Of twenty; an older one has none."""
    quorum = QueueProperties(arguments={"x-queue-type": "quorum"})
    assert (delivery_limit(quorum, 3), delivery_limit(quorum, 4), delivery_limit(QueueProperties(), 4)) == (
        None,
        20,
        None,
    )


def test_dead_letters_that_do_not_stay_are_told() -> None:
    """All reasons in one sentence; a queue that keeps them needs none."""
    assert dead_letter_findings("d", QueueProperties(arguments=WISHED)) == []
    arguments = {"x-expires": 1, "x-message-ttl": 2, "x-max-length": 3}
    (found,) = dead_letter_findings("d", QueueProperties(auto_delete=True, durable=False, arguments=arguments))
    for word in ("durable", "auto-delete", "x-expires=1", "x-message-ttl=2", "x-max-length=3"):
        assert word in found.what
