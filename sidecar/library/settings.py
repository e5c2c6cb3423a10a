"""The settings of a consumer: those of the sidecar that are about RabbitMQ and batches, by the same names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, TypeVar

from pydantic import BeforeValidator, Field

from sidecar.config.settings import (
    MAX_PREFETCH,
    AmqpSettings,
    Bytes,
    Seconds,
    SetSizeText,
    TemplateText,
    ValueKind,
    load_with_prefix,
)
from sidecar.core.wire.republish import MAX_DELAY_SECONDS
from sidecar.library.verdicts import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


_Kind = TypeVar("_Kind", bound=AmqpSettings)


def _kind(value: object) -> object:
    return value.kind if isinstance(value, Verdict) else value


Fallback = Annotated[
    Literal["dead-letter", "delay", "requeue", "discard"], BeforeValidator(_kind), ValueKind("verdict without reasons")
]


class ConsumerSettings(AmqpSettings):
    """What a consumer can be told. What has the name of a setting of the sidecar means the same."""

    workers: int = Field(1, gt=0, description="how many batches are in work at once; they share the consumer's memory")
    batch_max_items: int = Field(1000, gt=0, description="completion by count, in messages")
    batch_max_bytes: Bytes = Field(5 * 1024 * 1024, description="completion by the bodies' size, a byte more for each")
    batch_max_age: Seconds = Field(1.0, description="completion by age of the *first* message")
    batch_key: TemplateText | None = Field(None, description="correlation key; one open batch a key")
    batch_flush_when: TemplateText | None = Field(
        None, description="a message for which it is not empty completes its batch; with an empty body it is acked"
    )
    batch_complete_count: SetSizeText | None = Field(None, description="size of the complete set, in messages")
    memory_limit: Bytes = Field(64 * 1024 * 1024, description="bytes of messages held at once")
    on_exception: Fallback = Field("delay", description="the verdict for messages without one after an exception")
    on_missing_verdict: Fallback = Field(
        "delay",
        description="the verdict for messages whose value is not a verdict, "
        "and for all of a batch with too few verdicts or too many",
    )
    on_reject: Literal["dead-letter", "broker", "discard"] = Field(
        "dead-letter", description="what becomes of dead letters: published, left to the queue's policy, or thrown away"
    )
    reject_guard: int = Field(
        1000,
        ge=0,
        description="messages in a row that can't be batched (they lack what `batch_key` and the like need) before a "
        "hold begins, instead of emptying the queue into the dead letters; 0: off",
    )
    delayed_retry_max_rounds: int = Field(3, ge=0, description="how often a message is delayed, then a dead letter")
    delayed_retry_delay: Annotated[Seconds, Field(ge=0.001, le=MAX_DELAY_SECONDS)] = Field(
        10.0, description="delay of the first round, doubled each round, at most 5 minutes"
    )
    retry_delay_min: Seconds = Field(0.5, description="the first pause where no dead letter can be published")
    retry_delay_max: Seconds = Field(30.0, description="what it grows to")
    shutdown_timeout: Seconds = Field(25.0, description="the drain")

    @property
    def prefetch(self) -> int:
        """The prefetch: given, or room for all batches in work, the next one, and one that waits for its acks."""
        return self.amqp_prefetch or min(MAX_PREFETCH, self.batch_max_items * (self.workers + 2))

    def _problems(self) -> list[str]:
        problems = super()._problems() + self._delay_problems()
        if self.prefetch > MAX_PREFETCH:
            problems.append(f"SIDECAR_AMQP_PREFETCH is {self.prefetch}; the protocol takes at most {MAX_PREFETCH}")
        if self.prefetch < self.batch_max_items:
            problem = f"the prefetch of {self.prefetch} can't fill a batch of {self.batch_max_items}"
            problems.append(f"{problem} (SIDECAR_BATCH_MAX_ITEMS): batches would only ever complete by age")
        return problems


class Options(TypedDict, total=False):
    """What can be said in code, by name. Durations are seconds or texts (``"500ms"``), sizes bytes or ``"5MiB"``."""

    amqp_url: str | Sequence[str]
    amqp_queue: str | Sequence[str]
    amqp_declare: Literal["missing", "own", "never"]
    amqp_queue_type: Literal["classic", "quorum"]
    amqp_queue_arguments: Mapping[str, Any]
    amqp_consumer_arguments: Mapping[str, Any]
    amqp_exchange: str
    amqp_exchange_type: str
    amqp_routing_keys: str | Sequence[str]
    amqp_binding_arguments: Mapping[str, Any]
    amqp_prefetch: int
    amqp_ca_file: str
    amqp_cert_file: str
    amqp_key_file: str
    dead_letter_exchange: str
    dead_letter_routing_key: str
    workers: int
    batch_max_items: int
    batch_max_bytes: int | str
    batch_max_age: float | str
    batch_key: str
    batch_flush_when: str
    batch_complete_count: str
    memory_limit: int | str
    on_exception: Verdict
    on_missing_verdict: Verdict
    on_reject: Literal["dead-letter", "broker", "discard"]
    reject_guard: int
    delayed_retry_max_rounds: int
    delayed_retry_delay: float | str
    retry_delay_min: float | str
    retry_delay_max: float | str
    shutdown_timeout: float | str


def load(prefix: str | None, options: Options) -> ConsumerSettings:
    """Return the settings of a consumer.

    Args:
        prefix: of names in the environment and in ``.env``; None for neither.
        options: what code says; it counts for more.

    Raises:
        ConfigError: with every problem, none of them quoting a value.
    """
    return load_settings(ConsumerSettings, prefix, {**options})


def load_settings(kind: type[_Kind], prefix: str | None, options: dict[str, Any]) -> _Kind:
    """Return settings of some kind; see `load`."""
    return load_with_prefix(kind, os.environ, prefix, options)
