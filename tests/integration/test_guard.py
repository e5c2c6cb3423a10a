"""The guard before a request, on real servers: messages that can't be encoded don't empty a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.integration.harness import message
from tests.integration.http_client import ANY_PORT, Http
from tests.integration.process import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.integration.harness import Harness

DEADLINE_SECONDS = 60.0
GUARD = 1000
BAD = 4000
GOOD = 50


def test_a_property_that_publishers_do_not_set_holds(bench: Harness) -> None:
    """4,000 messages without it: a thousand dead letters, not ready, and why; fixed settings store the rest."""
    bench.create_index()
    bench.declare()
    bench.publish([message(b'{"n":%d}' % at, str(at)) for at in range(BAD)])
    sidecar = bench.sidecar(HTTP_ADDRESS=ANY_PORT, INDEX="{header.tenant}", BATCH_MAX_AGE="100ms")
    reason = sidecar.wait_for("elasticsearch.held")["reason"]
    assert f"{GUARD} messages in a row were rejected: missing-field: the message has no header.tenant" in reason
    wait_until(lambda: bench.count(bench.dead) == GUARD, DEADLINE_SECONDS, "a thousand dead letters", sidecar.told)
    http = Http(sidecar)
    answer = http.get("/readyz")
    assert (answer.status, answer.json["reason"]) == (503, "held")
    assert answer.json["detail"] == reason
    assert http.get("/status").json["breaker"]["reason"] == reason
    account = sidecar.terminate()
    assert (account["received"], account["dead_letter"], account["requeue"]) == (BAD, GUARD, BAD - GUARD)
    fixed = bench.sidecar(BATCH_MAX_AGE="100ms")
    bench.wait_empty(DEADLINE_SECONDS, fixed)
    letters = bench.dead_letters()
    assert {letter.headers["sidecar-reason"] for letter in letters} == {"missing-field"}
    stored = set(bench.documents())
    assert (len(letters), len(stored)) == (GUARD, BAD - GUARD)
    assert {letter.message_id for letter in letters} | stored == {str(at) for at in range(BAD)}


def test_publishers_that_are_fixed_end_the_hold(bench: Harness) -> None:
    """Their messages are behind those that wait; each of them lets a row go, and all is settled without a restart."""
    bench.create_index()
    bench.declare()
    bench.publish([message(b'{"n":%d}' % at, str(at)) for at in range(BAD)])
    sidecar = bench.sidecar(INDEX="{header.i}", BATCH_MAX_AGE="100ms")
    sidecar.wait_for("elasticsearch.held")
    bench.publish([message(b'{"n":%d}' % at, f"good {at}", headers={"i": bench.index_name}) for at in range(GOOD)])
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert (account["received"], account["dead_letter"], account["ack"]) == (BAD + GOOD, BAD, GOOD)
    assert sidecar.events("elasticsearch.resumed")
    assert bench.stored() == GOOD


def test_code_that_raises_holds(bench: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIDECAR_TRANSFORM whose server is away: it is asked again, and all goes on once it answers."""
    (tmp_path / "away.py").write_text(
        "from pathlib import Path\n"
        "def transform(message):\n"
        f"    if not Path({str(tmp_path / 'here')!r}).exists():\n"
        "        raise ConnectionError\n"
        "    return message.json()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bench.create_index()
    bench.declare()
    bench.publish([message(b'{"n":%d}' % at, str(at)) for at in range(300)])
    sidecar = bench.sidecar(TRANSFORM="away:transform", REJECT_GUARD="100", BATCH_MAX_AGE="100ms")
    reason = sidecar.wait_for("elasticsearch.held")["reason"]
    assert "100 messages in a row were rejected: transform-failed: ConnectionError at away.py:4" in reason
    (tmp_path / "here").touch()
    bench.wait_empty(DEADLINE_SECONDS, sidecar)
    account = sidecar.terminate()
    assert (account["dead_letter"], account["ack"]) == (100, 200)
    assert bench.stored() == 200
