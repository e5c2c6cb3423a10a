"""Batches of orders into SQLite, one transaction a batch.

EXAMPLE_AMQP_QUEUE=orders python examples/into_sqlite.py orders.db
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys

from sidecar import ACK, DEAD_LETTER, BatchConsumer, Message, Verdict


class IntoSqlite(BatchConsumer):
    """Stores orders by their ``message_id``: one that comes again ends in the same row."""

    def __init__(self, path: str) -> None:
        super().__init__(prefix="EXAMPLE_", batch_max_items=500)
        self.path = path

    async def on_start(self) -> None:
        """Open the database."""
        self.database = sqlite3.connect(self.path)
        self.database.execute("CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, amount REAL NOT NULL)")

    async def on_stop(self) -> None:
        """Close it: nothing is in work any more."""
        self.database.close()

    async def process(self, batch: list[Message]) -> list[Verdict]:
        """Store what can be read. An exception of the database is one of the whole batch: it comes again later."""
        verdicts, rows = [], []
        for message in batch:
            row = read(message)
            if row is None:
                verdicts.append(DEAD_LETTER.because("malformed", "no order with a message_id and an amount"))
            else:
                verdicts.append(ACK)
                rows.append(row)
        with self.database:
            self.database.executemany("INSERT OR REPLACE INTO orders VALUES (?, ?)", rows)
        return verdicts


def read(message: Message) -> tuple[str, float] | None:
    """Return id and amount of an order; None where it is none."""
    try:
        order = message.json()
    except ValueError:
        return None
    amount = order.get("amount") if isinstance(order, dict) else None
    if message.message_id is None or not isinstance(amount, int | float):
        return None
    return message.message_id, float(amount)


if __name__ == "__main__":
    asyncio.run(IntoSqlite(sys.argv[1]).run())
