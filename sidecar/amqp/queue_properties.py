"""The properties of a queue that exists: durable, exclusive, auto-delete, and the arguments that it was declared with.

AMQP has no method that returns them. But RabbitMQ refuses to declare a queue with other properties (406), and the
refusal names the first one that differs, with its present value. So a guess is declared, corrected by each refusal, and
declared again until RabbitMQ accepts it. A value that was misread is refused again, so a result is never wrong.

A queue may be deleted between two guesses, and the next guess must not create it. So each guess carries an argument
that RabbitMQ compares for streams only, with a value that is not valid for a new queue.

Policies are not visible here. Measured with RabbitMQ 3.10.8 and 4.3.6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiormq.abc import AbstractChannel, AbstractConnection

    from sidecar.amqp.channels import Ask

_GUARD = "x-stream-max-segment-size-bytes"
_GUARD_ARGUMENTS = {_GUARD: -1}
_MAX_GUESSES = 40  # RabbitMQ compares about twenty properties
_DIFFERENCE = re.compile(
    r"inequivalent arg '([^']+)' for queue '.*?' in vhost '.*?': received .*? but current is (.*)", re.DOTALL
)
_VALUE = re.compile(r"(?:the value )?'(.*?)'(?: of type '(\w+)')?", re.DOTALL)
_FLAGS = frozenset({"durable", "auto_delete", "exclusive"})
_INTEGERS = frozenset(
    {"signedint", "long", "short", "byte", "unsignedint", "unsignedlong", "unsignedshort", "unsignedbyte"}
)


@dataclass(frozen=True, slots=True)
class QueueProperties:
    """The properties that a queue was declared with.

    Attributes:
        durable: the queue survives a restart of the broker.
        exclusive: the queue belongs to one connection, and is deleted with it.
        auto_delete: the queue is deleted when its last consumer is cancelled.
        arguments: all that RabbitMQ compares, by name.
    """

    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def queue_type(self) -> str:
        """``classic``, ``quorum``, ``stream``, or a plug-in's."""
        return str(self.arguments.get("x-queue-type", "classic"))

    def number(self, name: str) -> int | None:
        """Return the value of an argument that is an integer; None without it."""
        value = self.arguments.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None


async def read_properties(ask: Ask, queue: str, arguments: dict[str, Any] | None = None) -> QueueProperties | None:
    """Return the properties of a queue; None if they can't be read, without the configure permission for instance.

    Args:
        ask: acts on a channel and returns the refusal, or None.
        queue: must exist; one that doesn't isn't created.
        arguments: the first guess. RabbitMQ logs each refusal, and a right guess causes none.

    Raises:
        AMQPError, OSError, RuntimeError, CancelledError: the connection was lost (`sidecar.amqp.connection.FAILURES`).
    """
    guess = QueueProperties(arguments=arguments or {})
    for _ in range(_MAX_GUESSES):
        refusal = await ask(lambda channel, guess=guess: _declare(channel, queue, guess))  # type: ignore[misc]
        if refusal is None or guess.queue_type == "stream":
            return guess
        corrected = correct(guess, str(refusal))
        if corrected is None:
            return None
        guess = corrected
    return None


def _declare(channel: AbstractChannel, queue: str, guess: QueueProperties) -> Awaitable[object]:
    return channel.queue_declare(
        queue,
        durable=guess.durable,
        exclusive=guess.exclusive,
        auto_delete=guess.auto_delete,
        arguments=guess.arguments | _GUARD_ARGUMENTS,
    )


def correct(guess: QueueProperties, refusal: str) -> QueueProperties | None:
    """Return a guess with the value from a refusal; None if the refusal is about something else."""
    difference = _DIFFERENCE.search(refusal)
    if difference is None:
        return None
    name, current = difference[1], difference[2]
    if name == _GUARD:  # only streams have this argument
        return replace(guess, arguments=guess.arguments | {"x-queue-type": "stream"})
    if name in _FLAGS:
        flag = {"'true'": True, "'false'": False}.get(current)
        return None if flag is None else _with_flag(guess, name, flag)
    if current == "none":
        return replace(guess, arguments={key: value for key, value in guess.arguments.items() if key != name})
    found = _VALUE.fullmatch(current)
    value = None if found is None else _value(found[1], found[2], guess.arguments.get(name))
    return None if value is None else replace(guess, arguments=guess.arguments | {name: value})


def _with_flag(guess: QueueProperties, name: str, flag: bool) -> QueueProperties:  # noqa: FBT001 - it is the value
    changes: dict[str, Any] = {name: flag}
    return replace(guess, **changes)


def _value(text: str, type_name: str | None, guessed: object) -> bool | int | str | None:
    """Return the value of an argument. A value without a type has that of the guess, or is a queue type."""
    if type_name in _INTEGERS or (type_name is None and type(guessed) is int):
        return int(text) if re.fullmatch(r"-?\d+", text) else None
    if type_name == "bool" or (type_name is None and isinstance(guessed, bool)):
        return {"true": True, "false": False}.get(text)
    return text if type_name in {"longstr", None} else None


def version(connection: AbstractConnection) -> list[int]:
    """Return RabbitMQ's major and minor version; zeros if it doesn't say."""
    numbers = str(connection.server_properties.get("version", "")).split(".")[:2]
    return [int(number) for number in numbers] if all(number.isdigit() for number in numbers) else [0, 0]


def major_version(connection: AbstractConnection) -> int:
    """Return RabbitMQ's major version; 0 if it doesn't say."""
    return version(connection)[0]
