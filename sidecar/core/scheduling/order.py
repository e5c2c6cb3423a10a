"""At most one operation for a document in flight; the next hangs behind it.

Everything that is in flight is independent then: retries, halving and partly applied requests need to know nothing of
order. Operations in one request are no way out: under load an earlier one can be refused (429) and a later one on the
same document, in the same request, be stored; a retry of the first would write old over new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sidecar.core.message import Message


class DocumentOrder:
    """The last operation admitted for each document that has one open."""

    def __init__(self) -> None:
        self._tail: dict[bytes, Message] = {}

    def __len__(self) -> int:
        """Return the number of documents with open operations."""
        return len(self._tail)

    def admit(self, messages: Iterable[Message]) -> list[Message]:
        """Return those of `messages` that are free to go; each other one waits for its predecessor."""
        tail = self._tail
        free = []
        for message in messages:
            key = message.document_key
            if key is not None:
                last = tail.get(key)
                tail[key] = message
                if last is not None:
                    last.next_for_document = message
                    continue
            free.append(message)
        return free

    def last(self, message: Message) -> Message | None:
        """Return the last operation admitted for the same document, if it is open."""
        return self._tail.get(message.document_key) if message.document_key is not None else None

    def insert_after(self, message: Message, followers: Iterable[Message]) -> None:
        """Have `followers` come right behind `message`, which is open, and before all that waits behind it already."""
        assert message.document_key is not None
        rest, at = message.next_for_document, message
        for follower in followers:
            at.next_for_document = follower
            at = follower
        at.next_for_document = rest
        if rest is None:
            self._tail[message.document_key] = at

    def drop_followers(self, messages: Iterable[Message]) -> None:
        """Forget what waits behind `messages`, because its epoch is over: an outage may last long."""
        for message in messages:
            if message.document_key is not None and message.next_for_document is not None:
                message.next_for_document = None
                self._tail[message.document_key] = message

    def release(self, messages: Iterable[Message]) -> list[Message]:
        """Note that nothing more will be written for `messages`; return the followers that are free to go now.

        A follower whose epoch is over is skipped: the broker has it again, and it must not be written now.
        """
        tail = self._tail
        free = []
        for message in messages:
            key = message.document_key
            if key is None:
                continue
            follower, message.next_for_document = message.next_for_document, None
            while follower is not None and follower.ledger.closed:
                message, follower = follower, follower.next_for_document  # noqa: PLW2901 - the chain is walked, not the list
                message.next_for_document = None
            if follower is not None:
                free.append(follower)
            elif tail.get(key) is message:
                del tail[key]
        return free
