"""Who answered: an Elasticsearch that can be used, or something else at its address."""

from __future__ import annotations

import json

import pytest

from sidecar.core.results import bulk
from sidecar.core.results.policy import RequestOutcome, classify_request
from sidecar.core.results.responder import is_own, obstacle, pointed_at, redirected
from sidecar.ports import Answer

HTML = b"<!DOCTYPE html><html><body>Sign in</body></html>"


def root(number: str, **version: str) -> bytes:
    """Return a root document."""
    return json.dumps({"name": "n", "cluster_name": "c", "version": {"number": number, **version}}).encode()


def error(status: int, kind: str) -> bytes:
    """Return an error of Elasticsearch's."""
    cause = {"type": kind, "reason": "because"}
    return json.dumps({"error": {"root_cause": [cause], **cause}, "status": status}).encode()


OURS = {
    "root of 8": Answer(200, root("8.19.4")),
    "root of 9": Answer(200, root("9.5.3"), product="Elasticsearch"),
    "root of a later version": Answer(200, root("10.0.0")),
    "root of OpenSearch": Answer(200, root("2.19.6", distribution="opensearch")),
    "root of OpenSearch that says it is 7": Answer(200, root("7.10.2", distribution="opensearch")),
    "405 of a distribution without modules": Answer(
        405, b'{"error":"Incorrect HTTP method for uri [/] and method [GET]","status":405}', product="Elasticsearch"
    ),
    "403 of a restricted user": Answer(403, error(403, "security_exception")),
    "400 of an empty bulk request": Answer(400, error(400, "parse_exception")),
    "results of an empty bulk request": Answer(200, b'{"took":0,"errors":false,"items":[]}'),
    "429 of a busy node": Answer(429, error(429, "circuit_breaking_exception")),
}

STRANGERS = {
    "404 page of a proxy": Answer(404, b"<html><head><title>404 Not Found</title></head><center>nginx</center></html>"),
    "405 of a proxy": Answer(405, b""),
    "login page": Answer(200, HTML),
    "empty 200": Answer(200, b""),
    "ok": Answer(200, b"ok"),
    "JSON 404 of another service": Answer(404, b'{"status":404,"error":"Not Found","path":"/"}'),
    "error object of another service": Answer(400, b'{"error":{"type":"invalid","message":"no"}}'),
    "status of Kibana": Answer(200, b'{"name":"kibana","version":{"number":"9.5.0"},"status":{}}'),
    "404 of Kibana": Answer(404, b'{"statusCode":404,"error":"Not Found","message":"Not Found"}'),
    "RabbitMQ's management": Answer(200, b"<!DOCTYPE html><html><title>RabbitMQ Management</title></html>"),
    "JSON array": Answer(200, b"[]"),
    "invalid UTF-8": Answer(200, b"\xff\xfe"),
    "403 page of a firewall": Answer(403, HTML),
}


@pytest.mark.parametrize("name", list(OURS))
def test_an_answer_of_elasticsearchs_own_is_no_obstacle(name: str) -> None:
    """By its header, or by the shape of its errors and of its root: whoever may not see the root may still write."""
    assert obstacle(OURS[name]) is None


@pytest.mark.parametrize("name", list(STRANGERS))
def test_an_answer_of_somebody_else_is_an_obstacle(name: str) -> None:
    """The status is told, and which setting is wrong; not the page."""
    found = obstacle(STRANGERS[name])
    assert found is not None
    assert not is_own(STRANGERS[name])
    assert f"{STRANGERS[name].status} is not Elasticsearch" in found.what
    assert "SIDECAR_ELASTICSEARCH_URL" in str(found)


def test_what_is_not_there_yet_needs_no_fix() -> None:
    """A proxy whose server starts answers as itself."""
    for status in (502, 503, 504):
        found = obstacle(Answer(status, HTML))
        assert found is not None
        assert (str(status) in found.what, found.fix) == (True, "")


def test_a_login_that_is_refused_is_told_as_that() -> None:
    """By Elasticsearch, or by whoever stands in front of it."""
    own, other = obstacle(Answer(401, error(401, "security_exception"))), obstacle(Answer(401, HTML))
    assert own is not None
    assert other is not None
    assert own.what == "Elasticsearch answered 401: it doesn't accept the login"
    assert "proxy" in other.what


def test_a_version_that_is_too_old_is_told_with_those_that_are_not() -> None:
    """The sidecar's requests have headers that 7 refuses, in words that name no version."""
    for number in ("7.17.29", "6.8.23", "5.0.0-alpha1"):
        found = obstacle(Answer(200, root(number), product="Elasticsearch"))
        assert found is not None
        assert found.what == f"Elasticsearch {number} was found; the sidecar supports 8 and 9"
    assert obstacle(Answer(200, root("unknown"))) is None


def test_a_redirect_is_a_fault_of_configuration_and_says_where_it_points() -> None:
    """Whatever its body claims, and for bulk requests as well: nothing is sent there."""
    for status in (301, 302, 303, 307, 308):
        answer = Answer(status, error(400, "x"), product="Elasticsearch", location="https://host/es")
        found = obstacle(answer)
        assert found is not None
        expected = f"Elasticsearch answered {status} and points at https://host/es: set SIDECAR_ELASTICSEARCH_URL to it"
        assert str(found).startswith(expected)
        fault = bulk.fault(answer.status, answer.body, answer.location)
        assert classify_request(fault) is RequestOutcome.HOLD
        assert str(fault) == str(found)
    assert "points at" not in str(redirected(302, ""))


@pytest.mark.parametrize(
    ("base", "path", "location", "expected"),
    [
        ("http://a:9200", "/", "https://a/", "https://a/"),
        ("http://a:9200", "/", "https://u:secret@a:9243/?token=secret#x", "https://a:9243/"),
        ("http://a:9200", "/i/_bulk?filter_path=x", "https://b/es/i/_bulk?filter_path=x", "https://b/es/"),
        ("http://a:9200/es", "/_bulk?x=1", "/es/_bulk/?x=1", "http://a:9200/es/"),
        ("http://a:9200", "/_bulk", "//b/_bulk", "http://b/"),
        ("http://a:5601", "/", "/login?next=%2F", "http://a:5601/login"),
        ("http://a:9200", "/", "https://[::1]:9200/", "https://[::1]:9200/"),
        ("http://a:9200", "/", "javascript:alert(1)", ""),
        ("http://a:9200", "/", "https://[::1/", ""),
        ("http://a:9200", "/", "https://b:no/", ""),
        ("http://a:9200", "/", "", ""),
    ],
)
def test_where_a_redirect_points_is_told_as_the_setting_takes_it(
    base: str, path: str, location: str, expected: str
) -> None:
    """Absolute, without what was asked for, logins and queries."""
    assert pointed_at(base, path, location) == expected
