"""What can go wrong at the edges, as exceptions. Failures of single items are values, not exceptions.

- `SidecarError`
  - `ConfigError`: the settings are wrong (exit status 2)
  - `BrokerError`: RabbitMQ is away, or refused something
    - `BrokerRefusedError`: it refused one operation, and the connection lives
      - `QueueError`: a queue was deleted, or can't be consumed without losing messages
    - `ProtocolError`: bytes that are not AMQP 0-9-1
  - `SinkError`: a bulk request went without an answer, so its outcome is unknown
  - `RefusedTemplateError`: Elasticsearch doesn't take a template
  - `TracingError`: traces that are asked for can't be had, which stops nothing
"""

from __future__ import annotations


class SidecarError(Exception):
    """The root of every error that the sidecar raises on purpose; its text is made for people."""


class ConfigError(SidecarError):
    """Settings that can't work.

    Attributes:
        problems: a sentence for each problem, all of them, without the values of secrets.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class BrokerError(SidecarError):
    """RabbitMQ can't be reached, was lost, or refused something."""


class BrokerRefusedError(BrokerError):
    """RabbitMQ refused one operation (it closed a channel over it); the connection can still be used."""


class QueueError(BrokerRefusedError):
    """A queue can't be consumed until somebody changes it; the sidecar tries again at intervals.

    Attributes:
        reason: what ``/readyz`` says: ``queue-gone`` or ``queue-refused``.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class ProtocolError(BrokerError):
    """The stream of bytes from the broker is not AMQP 0-9-1; the connection can't be used any further."""


class SinkError(SidecarError):
    """A request to Elasticsearch went without an answer: whether it was applied is unknown."""


class RefusedTemplateError(SidecarError):
    """Elasticsearch refuses a template, or to show or take any: trying again changes nothing."""


class TracingError(SidecarError):
    """Traces are asked for and can't be had; it is told and stops nothing."""
