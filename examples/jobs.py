"""A job engine: one job at a time, acked when it is done. Start as many as there are cores.

EXAMPLE_AMQP_QUEUE=jobs python examples/jobs.py reports/

A job is ``{"job": "report", "seconds": 5}``, and its ``message_id`` names the result. Where an engine crashes, the
broker has the job again, and the next engine begins it anew. Jobs that fail run again after 10 s, 20 s and 40 s; then
they are dead letters.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar import ACK, DEAD_LETTER, Consumer, Message, Verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def report(name: str, seconds: float = 0.0) -> str:
    """Do something that takes its time. What computes belongs into a thread: `asyncio.to_thread`."""
    await asyncio.sleep(seconds)
    return f"the report {name}\n"


JOBS: dict[str, Callable[..., Awaitable[str]]] = {"report": report}


class Engine(Consumer):
    """Runs jobs."""

    def __init__(self, folder: Path) -> None:
        super().__init__(prefix="EXAMPLE_", amqp_prefetch=1)
        self.folder = folder

    async def process(self, message: Message) -> Verdict:
        """Run a job, and put its result into the folder."""
        order: Any = message.json()
        job = JOBS.get(order.pop("job", ""))
        if job is None or message.message_id is None:
            return DEAD_LETTER.because("unknown-job", f"there are {', '.join(JOBS)}, and each needs a message_id")
        print("again" if message.redelivered else "begun", message.message_id, flush=True)
        result = await job(message.message_id, **order)
        unfinished = self.folder / f".{message.message_id}"
        unfinished.write_text(result)
        unfinished.rename(self.folder / f"{message.message_id}.txt")  # all of it is there, or nothing
        return ACK


if __name__ == "__main__":
    asyncio.run(Engine(Path(sys.argv[1])).run())
