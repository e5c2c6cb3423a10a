"""Documents made of a message by somebody's own code (``SIDECAR_TRANSFORM``): what composing needs to know of it.

The code itself is called by `sidecar.library.transforming`; here are only its results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.core.message import Message

    Transform = Callable[[Message], list[bytes]]
    """Gives the documents of a message, none, one or several; raises `TransformError`."""
    Prepare = Callable[[list[Message]], Awaitable[None]]
    """Where the code is asynchronous: calls it for a chunk, before that is composed."""


class TransformError(Exception):
    """The code raised an exception, or gave something that is no document: the message is rejected.

    Attributes:
        error_type: the exception's.
        detail: a sentence for people, without the exception's text, which may quote the message.
    """

    def __init__(self, error_type: str, detail: str) -> None:
        super().__init__(detail)
        self.error_type = error_type
        self.detail = detail


class NoDocumentError(Exception):
    """The code makes no document of the message: it is acked, and counted apart."""
