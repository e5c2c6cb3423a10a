"""Decides who answered a request: an Elasticsearch that can be used, or something else at its address.

A login page, a proxy's 404, Kibana and RabbitMQ's management port all answer over HTTP. An answer is
Elasticsearch's if it has the product header, or the format of Elasticsearch's errors, its root document or its
results of a bulk request.
OpenSearch doesn't send that header, and some proxies remove it.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit, urlunsplit

import orjson

PRODUCT_HEADER = "x-elastic-product"
OLDEST_MAJOR = 8
SUPPORTED = "8 and 9"
NOT_READY = frozenset({502, 503, 504})
"""From a node that starts, or from a proxy whose server is away."""
_PRODUCT = "Elasticsearch"
_REDIRECTS = range(300, 400)
_UNAUTHORIZED = 401


class Answer(NamedTuple):
    """Elasticsearch's answer to a request.

    Attributes:
        status: of HTTP.
        body: as it came.
        retry_after_seconds: what the header ``Retry-After`` asks for; 0 without it.
        product: the header ``X-elastic-product``; empty without it.
        location: where a redirect points, as `pointed_at` returns it.
    """

    status: int
    body: bytes
    retry_after_seconds: float = 0.0
    product: str = ""
    location: str = ""


class Obstacle(NamedTuple):
    """The reason why a server can't be used.

    Attributes:
        what: the fault.
        fix: what to do; empty if there is nothing to do but wait.
    """

    what: str
    fix: str = ""

    def __str__(self) -> str:
        """Return both as one sentence."""
        return f"{self.what}: {self.fix}" if self.fix else self.what


def obstacle(answer: Answer) -> Obstacle | None:
    """Return why the server that gave `answer` can't be used; None if it is an Elasticsearch that can be.

    Args:
        answer: to a request that is not about documents.
    """
    status = answer.status
    if is_redirect(status):
        return redirected(status, answer.location)
    if status in NOT_READY:
        return Obstacle(f"Elasticsearch answered {status}: it, or a proxy in front of it, is not ready")
    content = _object(answer.body)
    if status == _UNAUTHORIZED:
        return _not_logged_in(is_own=is_own(answer))
    if not is_own(answer):
        return Obstacle(
            f"the server that answered {status} is not Elasticsearch",
            "correct scheme, host, port and path in SIDECAR_ELASTICSEARCH_URL",
        )
    return _too_old(content)


def is_own(answer: Answer) -> bool:
    """Tell whether an Elasticsearch or OpenSearch answered, not something in front of it."""
    return answer.product == _PRODUCT or _has_own_shape(_object(answer.body))


def is_redirect(status: int) -> bool:
    """Tell whether an HTTP status is a redirect."""
    return status in _REDIRECTS


def redirected(status: int, location: str) -> Obstacle:
    """Return the obstacle of a redirect. It is never followed: a POST would become a GET, and lose its login.

    Args:
        status: of HTTP.
        location: as `pointed_at` returns it.
    """
    if not location:
        return Obstacle(f"Elasticsearch answered {status}", "set SIDECAR_ELASTICSEARCH_URL to Elasticsearch itself")
    return Obstacle(
        f"Elasticsearch answered {status} and points at {location}",
        "set SIDECAR_ELASTICSEARCH_URL to it, if Elasticsearch is there",
    )


def pointed_at(base: str, path: str, location: str) -> str:
    """Return the target of a redirect in the form of SIDECAR_ELASTICSEARCH_URL; empty if there is none.

    Login and query are removed, because they may hold secrets, and so is the path of the request.

    Args:
        base: URL of the server.
        path: of the request, with query.
        location: the header ``Location``.
    """
    if not location:
        return ""
    try:
        url = urlsplit(urljoin(base.rstrip("/") + path, location))
        port = url.port
    except ValueError:
        return ""
    if url.scheme not in {"http", "https"} or not url.hostname:
        return ""
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    asked = path.partition("?")[0].strip("/")
    stem = url.path.rstrip("/")
    if asked and stem.endswith(f"/{asked}"):
        stem = stem.removesuffix(asked)
    return urlunsplit((url.scheme, f"{host}:{port}" if port else host, stem or "/", "", ""))


def _not_logged_in(*, is_own: bool) -> Obstacle:
    if is_own:
        return Obstacle(
            f"Elasticsearch answered {_UNAUTHORIZED}: it doesn't accept the login",
            "correct SIDECAR_ELASTICSEARCH_USERNAME and _PASSWORD, or _API_KEY, or _BEARER_TOKEN; none may be expired",
        )
    return Obstacle(
        f"Elasticsearch, or a proxy in front of it, answered {_UNAUTHORIZED}: it doesn't accept the login",
        "correct the login; the proxy must pass the header Authorization on",
    )


def _too_old(root: dict[str, Any]) -> Obstacle | None:
    version = root.get("version")
    if not isinstance(version, dict) or "distribution" in version:  # which OpenSearch has
        return None
    number = str(version.get("number"))
    major = number.partition(".")[0]
    if not major.isdecimal() or int(major) >= OLDEST_MAJOR:
        return None
    return Obstacle(f"Elasticsearch {number[:20]} was found; the sidecar supports {SUPPORTED}", "upgrade Elasticsearch")


def _has_own_shape(content: dict[str, Any]) -> bool:
    error, version = content.get("error"), content.get("version")
    if isinstance(error, dict):
        return isinstance(error.get("type"), str) and isinstance(error.get("root_cause"), list)
    if isinstance(content.get("errors"), bool) and isinstance(content.get("items"), list):
        return True  # a server that speaks nothing but _bulk, and takes an empty one
    return isinstance(version, dict) and isinstance(version.get("number"), str) and "cluster_name" in content


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return content if isinstance(content, dict) else {}
