"""``SIDECAR_TRANSFORM=module:function``: somebody's own code between a message and its documents.

    def transform(message: sidecar.Message) -> dict | list[dict] | bytes | None: ...

The function may be asynchronous; it is called for all messages of a chunk at once then.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from sidecar.core.encoding import exact_json
from sidecar.core.encoding.document import MAX_DOCUMENT_BYTES
from sidecar.core.encoding.transform import TransformError
from sidecar.errors import ConfigError
from sidecar.library.exceptions import error_location, is_own_cancellation
from sidecar.library.messages import BodyError, Message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sidecar.core.encoding.transform import Prepare, Transform
    from sidecar.core.message import Message as Delivery


class Hook(NamedTuple):
    """The function, as composing uses it.

    Attributes:
        transform: gives the documents of a message.
        prepare: is to be awaited for a chunk before; None where the function is synchronous.
    """

    transform: Transform
    prepare: Prepare | None


def load(reference: str, max_bytes: int = MAX_DOCUMENT_BYTES) -> Hook:
    """Import a function; modules are looked for in the working directory as well.

    Args:
        reference: ``module:function``.
        max_bytes: the limit for a decompressed body.

    Raises:
        ConfigError: there is no such module or function, or importing it fails.
    """
    name, _, attribute = reference.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(name), attribute)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}"
        raise ConfigError([f"SIDECAR_TRANSFORM: {reference} can't be imported ({why})"]) from error
    if not callable(function):
        raise ConfigError([f"SIDECAR_TRANSFORM: {reference} is no function"])
    return hook(function, max_bytes)


def hook(function: Callable[[Message], object], max_bytes: int = MAX_DOCUMENT_BYTES) -> Hook:
    """Return the hook of a function, or of another callable object."""
    if not any(map(inspect.iscoroutinefunction, (function, getattr(function, "__call__", None)))):  # noqa: B004
        return Hook(lambda delivery: _documents(lambda: function(Message(delivery, max_bytes))), None)

    async def one(delivery: Delivery) -> None:
        try:
            delivery.made = await cast("Awaitable[object]", function(Message(delivery, max_bytes)))
        except (Exception, asyncio.CancelledError) as error:
            if is_own_cancellation(error):
                raise
            delivery.made = _told(error)

    async def prepare(chunk: list[Delivery]) -> None:
        await asyncio.gather(*(one(delivery) for delivery in chunk))

    return Hook(lambda delivery: _documents(lambda: _made(delivery)), prepare)


def _made(delivery: Delivery) -> object:
    made = delivery.made
    del delivery.made  # used once: None would mean no document, and an ack
    if isinstance(made, Exception):
        raise made
    return made


def _documents(call: Callable[[], object]) -> list[bytes]:
    """Return what a function gives as documents.

    Raises:
        TransformError: it raised an exception, or gave something else.
    """
    try:
        given = call()
        if given is None:
            return []
        return [_bytes(one) for one in given] if isinstance(given, list | tuple) else [_bytes(given)]
    except TransformError:
        raise
    except Exception as error:
        raise _told(error) from error


def _told(error: BaseException) -> TransformError:
    """Return the error that an exception means: with our own words if it is ours, otherwise with its place alone."""
    kind = type(error).__name__
    if isinstance(error, BodyError):
        return TransformError(kind, f"{error} ({error_location(error)})")
    return TransformError(kind, f"{kind} at {error_location(error)}")


def _bytes(document: object) -> bytes:
    """Return what a function gives as a document.

    Raises:
        TransformError: it is none.
    """
    if isinstance(document, bytes):
        return document
    try:
        if isinstance(document, str):
            return document.encode()
        if isinstance(document, dict):
            return exact_json.write(document)
    except UnicodeEncodeError as error:
        why = "the text that the function gave holds half of a surrogate pair, which UTF-8 can't hold"
        raise TransformError(type(error).__name__, why) from None
    except TypeError as error:  # which names types, and quotes nothing
        why = f"the dict that the function gave can't be written as JSON: {error}"
        raise TransformError(TypeError.__name__, why) from None  # orjson has one of its own
    given = type(document).__name__
    why = f"the function gave {given}, which is not a document: a dict is one, and so is JSON as str or bytes"
    raise TransformError(TypeError.__name__, why)
