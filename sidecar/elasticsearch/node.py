"""A node of a cluster over aiohttp that follows no redirects, and the check whether it is an Elasticsearch."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, cast

from elastic_transport import AiohttpHttpNode
from yarl import URL

from sidecar.core.results.bulk import ACCEPT, CONTENT_TYPE
from sidecar.core.results.responder import NOT_READY, PRODUCT_HEADER, is_own, obstacle, pointed_at
from sidecar.ports import Answer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import aiohttp
    from elastic_transport import ApiResponseMeta, HttpHeaders

    from sidecar.core.results.responder import Obstacle

    Ask = Callable[[str, str, Mapping[str, str]], Awaitable[Answer]]

BULK_HEADERS = {"accept": ACCEPT, "content-type": CONTENT_TYPE}
_ROOT_HEADERS = {"accept": "application/json"}
"""Without a version: Elasticsearch before 8 refuses a media type with one, and wouldn't tell its own version."""
BULK_PATH = "/_bulk"
MAX_RETRY_AFTER_SECONDS = 3600.0
"""The longest pause that an answer may ask for, so that there is a probe at least once an hour."""
OTHER_SHAPE = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What reading an answer raises if it isn't in Elasticsearch's format."""


class _Session:
    """The session of a node, which returns redirects like other answers.

    aiohttp follows redirects unless each request forbids it, and elastic_transport has no option for that. In a
    redirect a POST becomes a GET, and a login is dropped for another host.
    """

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    def request(self, method: str, url: str, **options: Any) -> object:  # noqa: ANN401 - aiohttp's options
        """Send a request, and return its answer even if that is a redirect."""
        return self._session.request(method, url, allow_redirects=False, **options)

    async def close(self) -> None:
        """Close its connections."""
        await self._session.close()


class Node(AiohttpHttpNode):
    """A node of elastic_transport that follows no redirect."""

    def _create_aiohttp_session(self) -> None:
        super()._create_aiohttp_session()
        if self.session is not None:
            self.session = cast("aiohttp.ClientSession", _Session(self.session))


def as_answer(meta: ApiResponseMeta, body: object, path: str) -> Answer:
    """Return a response as an answer.

    Args:
        meta: from the transport.
        body: of the response.
        path: of the request, with query.
    """
    headers, node = meta.headers, meta.node
    base = URL.build(scheme=node.scheme, host=node.host, port=node.port, path=node.path_prefix, encoded=True)
    return Answer(
        meta.status,
        body if isinstance(body, bytes) else b"",
        retry_after(headers),
        headers.get(PRODUCT_HEADER) or "",
        pointed_at(str(base), path, headers.get("location") or ""),
    )


async def find_obstacle(ask: Ask, bulk_path: str = BULK_PATH) -> Obstacle | None:
    """Return why Elasticsearch can't be used now; None if it can. This needs a login, but no privilege.

    `GET /` returns the version. Some users may not call it; then an error in Elasticsearch's format is enough. A proxy
    may pass only bulk requests: if something else answers, an empty one decides, which Elasticsearch refuses before it
    checks privileges.

    Args:
        ask: sends a request without a body, by method, path and headers.
        bulk_path: where bulk requests go.
    """
    answer = await ask("GET", "/", _ROOT_HEADERS)
    if not is_own(answer) and answer.status not in NOT_READY:
        answer = await ask("POST", bulk_path, BULK_HEADERS)
    return obstacle(answer)


def retry_after(headers: HttpHeaders) -> float:
    """Return the seconds to wait, from a number or a date as proxies write it; at most `MAX_RETRY_AFTER_SECONDS`."""
    asked = headers.get("retry-after") or ""
    try:
        seconds = float(asked)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(asked).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(seconds, MAX_RETRY_AFTER_SECONDS) if seconds > 0 else 0.0  # NaN is not above 0
