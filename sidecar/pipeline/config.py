"""What the pipeline is to do: the settings that it needs, without where they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sidecar.core.far import ELASTICSEARCH, Far
from sidecar.core.results.policy import ErrorPolicy

if TYPE_CHECKING:
    from sidecar.core.encoding.encoder import EncoderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """What the pipeline is to do; the meaning of each is that of the setting of its name.

    Attributes:
        merges_batches: whether small batches may share a request.
        far: how what takes the requests is called.
    """

    encoder_config: EncoderConfig
    batch_max_items: int = 1000
    batch_max_bytes: int = 5 * 1024 * 1024
    batch_max_age_seconds: float = 1.0
    merges_batches: bool = True
    bulk_concurrency: int = 4
    prefetch: int = 6000
    memory_limit_bytes: int = 64 * 1024 * 1024
    hold_max_seconds: float = 300.0
    retry_max_attempts: int = 5
    retry_delay_min_seconds: float = 0.5
    retry_delay_max_seconds: float = 30.0
    delayed_retry_max_rounds: int = 3
    delayed_retry_delay_seconds: float = 10.0
    error_policy: ErrorPolicy = field(default_factory=ErrorPolicy)
    on_reject: Literal["dead-letter", "broker", "discard"] = "dead-letter"
    reject_guard: int = 1000
    dead_letter_exchange: str = ""
    dead_letter_routing_key: str | None = None
    far: Far = ELASTICSEARCH
