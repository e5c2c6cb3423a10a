"""What a message may cost on the pure path, counted in calls: a guard against a slow change that no clock disturbs."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from bench.path import BATCH_ITEMS, READ_BYTES, Path, stream
from bench.templates import deliveries
from sidecar.core.encoding.encoder import BulkEncoder, EncoderConfig
from sidecar.core.encoding.template import Template

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

MESSAGES = 10_000
CALLS_EACH = 1
"""Of Python functions: the message's own ``__init__``."""
BUILTINS_EACH = 18
"""Of functions in C: mostly ``append``, ``len``, ``unpack_from`` and ``get``, which take 0.02 to 0.15 µs."""
CALLS_OF_A_TEMPLATE = 60
"""Of Python functions, for a chunk of whatever length."""
CALLS_A_READ = 30
CALLS_A_BATCH = 60
HELD_BYTES_EACH = 700
"""What a message takes besides its body while it is held: the object, its properties, route, line and key."""


RECIPES = {
    "id": EncoderConfig(index=Template("docs"), id_mode="template", id=Template("{header.tenant}-{message_id}")),
    "index": EncoderConfig(index=Template("docs-{header.tenant}")),
    "routing": EncoderConfig(index=Template("docs"), routing=Template("{header.tenant}")),
}


@pytest.fixture(scope="module")
def reads() -> list[bytes]:
    data = stream(MESSAGES)
    return [data[at : at + READ_BYTES] for at in range(0, len(data), READ_BYTES)]


def calls(work: Callable[[], object]) -> tuple[Counter[str], Counter[str]]:
    """Return the Python functions and the built-in ones that were called, with how often."""
    functions: Counter[str] = Counter()
    builtins: Counter[str] = Counter()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            functions[f"{frame.f_code.co_filename.rpartition('sidecar/')[2]}:{frame.f_code.co_name}"] += 1
        elif event == "c_call":
            builtins[getattr(argument, "__name__", repr(argument))] += 1

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return functions, builtins


def test_a_message_costs_a_bounded_number_of_calls(reads: list[bytes]) -> None:
    """One function of ours for each; whatever else there is comes once a read or once a batch."""
    path = Path()
    functions, builtins = calls(lambda: path.run(reads))
    assert path.stored == MESSAGES
    shared = CALLS_A_READ * len(reads) + CALLS_A_BATCH * (MESSAGES // BATCH_ITEMS)
    assert functions.total() <= CALLS_EACH * MESSAGES + shared, functions.most_common(8)
    assert builtins.total() <= BUILTINS_EACH * MESSAGES + shared, builtins.most_common(20)


def test_nothing_but_reading_looks_at_a_message_by_a_call(reads: list[bytes]) -> None:
    """Encoder, order, batches, requests, answers and acks are calls for a chunk or a batch, however long it is."""
    functions, _ = calls(lambda: Path().run(reads))
    by_message = {name for name, count in functions.items() if count >= MESSAGES // 10}
    assert by_message == {"core/message.py:__init__"}


@pytest.mark.parametrize(
    "encoder_config", [pytest.param(encoder_config, id=name) for name, encoder_config in RECIPES.items()]
)
def test_a_template_is_no_call_for_a_message(encoder_config: EncoderConfig) -> None:
    """What it says of a chunk is read and joined as a column, in C where that can be."""
    messages = deliveries()
    encoder = BulkEncoder(encoder_config, lambda: "")
    encoder.encode(messages, 0.0)  # each index is looked at once
    functions, _ = calls(lambda: encoder.encode(messages, 0.0))
    assert functions.total() <= CALLS_OF_A_TEMPLATE, functions.most_common(30)


def test_a_message_that_is_held_takes_little_besides_its_body(reads: list[bytes]) -> None:
    """The memory limit counts so much for each: with a full backlog that is what the sidecar grows by."""
    path = Path()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        held = [message for read in reads for message in path.parser.feed(read).messages]
        path.encoder.encode(held, 0.0)
        path.order.admit(held)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(held) == MESSAGES
    bodies = sum(len(message.body) for message in held)
    assert (after - before - bodies) / MESSAGES <= HELD_BYTES_EACH


def test_each_way_loads_nothing_of_the_other() -> None:
    """The Elasticsearch client takes 20 MiB that a stage of a chain has no need of."""
    loaded = "print(*[name for name in sys.modules if name in {wanted}])"
    ways = {
        "sidecar.cli.forwarding": {
            "elasticsearch",
            "elastic_transport",
            "sidecar.elasticsearch",
            "sidecar.sinks.elasticsearch",
        },
        "sidecar.cli.indexing": {"sidecar.sinks.amqp", "sidecar.amqp.publisher", "sidecar.amqp.publisher_connection"},
    }
    for way, other in ways.items():
        code = f"import sys, sidecar.cli.run, {way}; " + loaded.format(wanted=other)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.split() == [], way
