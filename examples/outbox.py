"""An outbox: messages are written with the data, in one transaction, and published from there.

EXAMPLE_AMQP_EXCHANGE=orders python examples/outbox.py shop.db

A program that wrote its data and then published could crash in between, and the message would never be sent. Here it is
a row; it is marked as sent when the broker has confirmed it, so it is sent at least once, and with the same
``message_id`` each time.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
import time
from contextlib import suppress

from sidecar import Outgoing, Publisher
from sidecar.errors import BrokerError

AT_ONCE = 500
PAUSE_SECONDS = 0.5


def open_database(path: str) -> sqlite3.Connection:
    """Open the shop's database."""
    database = sqlite3.connect(path)
    database.executescript(
        """
        CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, amount REAL NOT NULL);
        CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY, routing_key TEXT, body BLOB, sent_at REAL);
        CREATE INDEX IF NOT EXISTS unsent ON outbox (id) WHERE sent_at IS NULL;
        """
    )
    return database


def place(database: sqlite3.Connection, amount: float) -> None:
    """Place an order: the row and the message are there together, or neither is."""
    with database:
        order = database.execute("INSERT INTO orders (amount) VALUES (?)", (amount,)).lastrowid
        body = b'{"order":%d,"amount":%g}' % (order or 0, amount)
        database.execute("INSERT INTO outbox (routing_key, body) VALUES ('order.placed', ?)", (body,))


async def relay(database: sqlite3.Connection, publisher: Publisher) -> bool:
    """Publish what waits, oldest first; return whether there was anything that could be."""
    rows = database.execute(
        "SELECT id, routing_key, body FROM outbox WHERE sent_at IS NULL ORDER BY id LIMIT ?", (AT_ONCE,)
    ).fetchall()
    if not rows:
        return False
    exchange = publisher.settings.amqp_exchange or ""
    try:
        refusals = await publisher.publish(
            Outgoing(body=body, exchange=exchange, routing_key=key, message_id=f"outbox-{row}", type="order")
            for row, key, body in rows
        )
    except BrokerError as error:
        print(f"not now: {error}", file=sys.stderr)
        return False
    sent = [(time.time(), row) for (row, _, _), refusal in zip(rows, refusals, strict=True) if refusal is None]
    with database:
        database.executemany("UPDATE outbox SET sent_at = ? WHERE id = ?", sent)
    return bool(sent)


async def main(path: str) -> None:
    """Relay until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    database = open_database(path)
    publisher = Publisher(prefix="EXAMPLE_", amqp_exchange_type="topic")
    while not stop.is_set():
        if not await relay(database, publisher):
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), PAUSE_SECONDS)
    await publisher.close()
    database.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
