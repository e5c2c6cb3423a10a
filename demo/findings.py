"""What there is: documents, dead letters, queue lengths. Looked at from outside, with ordinary clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import aiormq
from aiormq.exceptions import ChannelNotFoundEntity
from elasticsearch import ApiError, AsyncElasticsearch

if TYPE_CHECKING:
    from aiormq.abc import AbstractConnection

_PAGE = 5000


class DeadLetter(NamedTuple):
    """A message of the dead-letter queue."""

    document_id: str
    headers: dict[str, Any]
    body: bytes


class Documents:
    """An index, seen through the official client.

    Args:
        url: of Elasticsearch.
        index: its name.
    """

    def __init__(self, url: str, index: str) -> None:
        self._client = AsyncElasticsearch(url, request_timeout=30.0)
        self._index = index
        self._counted = 0

    async def count(self) -> int:
        """Return how many documents a search would see; it is up to a second behind."""
        try:
            answer = await self._client.count(index=self._index)
        except ApiError:  # no index yet, or no shard of it: there is nothing new to say
            return self._counted
        self._counted = int(answer["count"])
        return self._counted

    async def everything(self) -> list[tuple[str, dict[str, Any]]]:
        """Return every document with its id, in the order in which they were made."""
        await self._client.indices.refresh(index=self._index)
        found: list[tuple[str, dict[str, Any]]] = []
        after: list[Any] | None = None
        while True:
            answer = await self._client.search(
                index=self._index, size=_PAGE, sort=[{"sequence": "asc"}, {"_doc": "asc"}], search_after=after
            )
            hits = answer["hits"]["hits"]
            found += [(hit["_id"], hit["_source"]) for hit in hits]
            if len(hits) < _PAGE:
                return found
            after = hits[-1]["sort"]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


class Queues:
    """Queues of a broker. Made by `open_queues`."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def length(self, queue: str) -> int:
        """Return how many messages wait in a queue, delivered ones not among them; 0 without a queue."""
        channel = await self._connection.channel(publisher_confirms=False)
        try:
            answer = await channel.queue_declare(queue, passive=True)
        except ChannelNotFoundEntity:
            return 0
        await channel.close()
        return answer.message_count or 0

    async def look(self, queue: str) -> list[DeadLetter]:
        """Return the messages of a queue and leave them there: they are fetched, and given back with the channel."""
        channel = await self._connection.channel(publisher_confirms=False)
        letters = []
        while (message := await channel.basic_get(queue, no_ack=False)).delivery_tag:
            properties = message.header.properties
            letters.append(DeadLetter(properties.message_id or "", dict(properties.headers or {}), message.body))
        await channel.close()
        return letters

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()


async def open_queues(url: str) -> Queues:
    """Connect to the broker at `url`."""
    return Queues(await aiormq.connect(url))
