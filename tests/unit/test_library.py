"""The library without a broker: its settings, its verdicts, what it costs those who don't use it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import sidecar
from sidecar import (
    ACK,
    DEAD_LETTER,
    DELAY,
    REQUEUE,
    BatchConsumer,
    Consumer,
    ConsumerSettings,
    Message,
    Options,
    Verdict,
)
from sidecar.config.settings import AmqpSettings, Settings
from sidecar.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
SIDECARS_OWN = {"workers", "on_exception", "on_missing_verdict"}


class Nothing(BatchConsumer):
    """Acks."""

    async def process(self, batch: list[Message]) -> Verdict:
        assert batch
        return ACK


class Job(Consumer):
    """Acks."""

    async def process(self, message: Message) -> Verdict:
        assert message
        return ACK


def test_settings_from_code_environment_and_dotenv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Code counts for more than the environment, and that for more than ``.env``; the prefix is one's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(
        "SHOP_AMQP_QUEUE=from-file\nSHOP_BATCH_MAX_AGE=250ms\nSHOP_WORKERS=7\nSHOP_COLOUR=red\nSIDECAR_WORKERS=9\n"
    )
    monkeypatch.setenv("SHOP_WORKERS", "5")
    monkeypatch.setenv("SHOP_ON_EXCEPTION", "requeue")
    settings = Nothing(prefix="SHOP_", amqp_queue=["a", "b"], batch_max_bytes="1MiB").settings
    assert settings.amqp_queue == ("a", "b")
    assert (settings.batch_max_age, settings.batch_max_bytes) == (0.25, 1 << 20)
    assert (settings.workers, settings.on_exception) == (5, "requeue")
    assert Nothing(amqp_queue="work").settings.workers == 1  # without a prefix nothing is read


def test_every_problem_is_told_at_once_and_by_the_name_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the spelling of the environment, or of the code, and without values."""
    monkeypatch.setenv("SHOP_BATCH_MAX_AGE", "secret")
    with pytest.raises(ConfigError) as caught:
        Nothing(prefix="SHOP_")
    assert caught.value.problems == [
        "SHOP_AMQP_QUEUE is required",
        "SHOP_BATCH_MAX_AGE: must be a duration such as 500ms, 1s, 5m, or seconds",
    ]
    wrong: Any = {"batch_max_item": 5, "amqp_prefetch": 10, "amqp_queue": "work"}
    with pytest.raises(ConfigError) as caught:
        Nothing(**wrong)
    assert caught.value.problems == [
        "batch_max_item is no setting: did you mean batch_max_items?",
        "the prefetch of 10 can't fill a batch of 1000 (batch_max_items): batches would only ever complete by age",
    ]


def test_settings_that_share_a_name_with_the_sidecars_are_the_same() -> None:
    """Whoever knows the one knows the other: same type, same default, and nothing that isn't there."""
    own = set(ConsumerSettings.model_fields) - set(Settings.model_fields)
    assert own == SIDECARS_OWN
    for name in set(ConsumerSettings.model_fields) - SIDECARS_OWN:
        mine, theirs = ConsumerSettings.model_fields[name], Settings.model_fields[name]
        assert mine.default == theirs.default, name
        assert mine.annotation == theirs.annotation, name
    assert set(AmqpSettings.model_fields) <= set(ConsumerSettings.model_fields)


def test_options_are_the_settings() -> None:
    """What a type checker knows is what there is."""
    assert set(Options.__annotations__) == set(ConsumerSettings.model_fields)


def test_a_consumer_of_single_messages_has_batches_of_one() -> None:
    """And room for the next while one is in work, unless it is to have none."""
    job = Job(amqp_queue="work")
    assert (job.settings.batch_max_items, job.settings.prefetch) == (1, 3)
    assert Job(amqp_queue="work", amqp_prefetch=1).settings.prefetch == 1


def test_verdicts_with_reasons_and_delays() -> None:
    """A verdict with a reason is another object; only DELAY has a delay, and not any."""
    verdict = DEAD_LETTER.because("no-customer", "customer 12 is not there")
    assert (verdict.kind, verdict.reason, verdict.detail) == ("dead-letter", "no-customer", "customer 12 is not there")
    assert DEAD_LETTER.reason == ""
    assert DELAY.after(2.5).seconds == 2.5
    for wrong in (0.0, 301.0):
        with pytest.raises(ValueError, match="is not valid; use one from"):
            DELAY.after(wrong)
    with pytest.raises(ValueError, match="requeue has no delay"):
        REQUEUE.after(1.0)


def test_it_is_started_once() -> None:
    """A second start would be a second consumer that nobody stops; after a stop it may be started again."""

    async def main() -> None:
        consumer = Nothing(amqp_queue="work", amqp_url="amqp://127.0.0.1:1/")
        async with consumer:
            with pytest.raises(RuntimeError, match="Nothing runs already"):
                await consumer.start()
        async with consumer:
            assert consumer.is_running

    asyncio.run(main())


def test_what_on_start_raises_comes_out_and_nothing_runs() -> None:
    """Without its preparation nothing may be consumed."""

    class Unprepared(Nothing):
        async def on_start(self) -> None:
            raise LookupError("no table")

        async def on_stop(self) -> None:
            raise AssertionError("what was not started is not stopped")

    async def main() -> None:
        consumer = Unprepared(amqp_queue="work")
        with pytest.raises(LookupError, match="no table"):
            await consumer.run()
        assert not consumer.is_running

    asyncio.run(main())


def test_commands_import_no_more_than_before() -> None:
    """The library is imported when it is asked for, and not with the package."""
    code = """
        import sys
        import sidecar.cli.run
        assert not [name for name in sys.modules if name.startswith("sidecar.library")]
        import sidecar
        assert "BatchConsumer" in dir(sidecar)
        sidecar.BatchConsumer
        assert "sidecar.library" in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_the_library_loads_no_elasticsearch_client() -> None:
    """Nor the HTTP library under it: they take 20 MiB that nobody needs here."""
    code = 'import sys; from sidecar import BatchConsumer; assert not {"elasticsearch", "aiohttp"} & set(sys.modules)'
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_that_are_not_there_are_no_surprise() -> None:
    """As in any module."""
    assert sorted(sidecar.__all__) == sorted(dir(sidecar))
    with pytest.raises(AttributeError, match="no attribute 'Consummer'"):
        _ = sidecar.Consummer  # type: ignore[attr-defined]


def test_the_public_api_is_typed(tmp_path: Path) -> None:
    """A type checker knows options, verdicts and messages, and finds what is wrong with them; examples are right."""
    pytest.importorskip("mypy", reason="mutants are tested in an environment without it")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            from collections.abc import AsyncIterator
            from sidecar import ACK, DELAY, BatchConsumer, Consumer, Message, Verdict, consume

            class Yielding(BatchConsumer):
                async def process(self, batch: list[Message]) -> AsyncIterator[Verdict]:
                    for message in batch:
                        reveal_type(message.body)
                        yield ACK

            class Returning(BatchConsumer):
                async def process(self, batch: list[Message]) -> list[Verdict]:
                    return [DELAY.after(1.0) for _ in batch]

            class Single(Consumer):
                async def process(self, message: Message) -> Verdict:
                    reveal_type(message.headers)
                    return ACK

            async def handle(batch: list[Message]) -> Verdict:
                return ACK

            async def main() -> None:
                await Yielding(prefix="SHOP_", amqp_queue="orders", batch_max_age="500ms").run()
                await consume(handle, amqp_queue=["a", "b"], on_exception=DELAY)
                async with Returning(amqp_queue="orders", batch_max_items="many") as consumer:
                    reveal_type(consumer)
                Single(amqp_quue="orders")

            class Wrong(Consumer):
                async def process(self, message: Message) -> bool:
                    return True
            """
        )
    )
    examples = [str(path) for path in sorted((ROOT / "examples").rglob("*.py"))]
    check = [sys.executable, "-m", "mypy", str(program), *examples]  # from the root: with the cache of the linter's run
    told = subprocess.run(check, cwd=ROOT, check=False, capture_output=True, text=True).stdout
    notes = [line.partition(": note: ")[2] for line in told.splitlines() if "Revealed type" in line]
    kinds = ["bytes", "dict[str, object]", "program.Returning"]
    assert [any(kind in note.replace("builtins.", "") for note in notes) for kind in kinds] == [True] * 3, told
    errors = [line.rpartition("[")[2].rstrip("]") for line in told.splitlines() if ": error: " in line]
    assert errors == ["arg-type", "call-arg", "override"], told
