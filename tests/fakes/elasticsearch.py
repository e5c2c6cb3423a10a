"""A simulated Elasticsearch: `_bulk` with its strict syntax, versions, a write pool, and everything that goes wrong.

It stands behind the port `sidecar.ports.Sink`, in virtual time: it reads the real bytes of requests and answers with
the real (filtered) bytes, as measured on 9.5.0. It knows nothing of the product's core, so that it can judge it.
"""

from __future__ import annotations

import asyncio
import enum
import json
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from sidecar.errors import SinkError
from sidecar.ports import Answer

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

ACTIONS = ("index", "create", "update", "delete")
_PARAMETERS = frozenset({
    "_index", "_id", "routing", "pipeline", "version", "version_type", "if_seq_no", "if_primary_term", "require_alias",
    "require_data_stream", "retry_on_conflict", "dynamic_templates", "list_executed_pipelines", "_source",
})  # fmt: skip
_MAX_ID_BYTES = 512
_MAX_CONTENT_BYTES = 100 * 1024 * 1024
_SHARDS = 4
LOOK = -1
_LOOK_SECONDS = 10.0
_NOT_THERE = frozenset({401, 502, 503, 504})
_REDIRECTS = range(300, 400)
_EXTERNAL = ("external", "external_gte")


class Trouble(enum.Enum):
    """What can happen to a request as a whole, but for an answer that says no."""

    REFUSED = enum.auto()
    """The connection is refused, at once."""
    LOST_BEFORE = enum.auto()
    """The connection breaks before the request was applied."""
    LOST_AFTER = enum.auto()
    """The connection breaks when the request was applied."""
    HANGS_BEFORE = enum.auto()
    """No answer comes until the client's patience ends; nothing was applied."""
    HANGS_AFTER = enum.auto()
    """No answer comes until the client's patience ends, but all was applied."""
    LATE = enum.auto()
    """No answer comes until the client's patience ends, and then all is applied."""
    UNREADABLE = enum.auto()
    """Applied; the answer is cut in the middle."""
    SHORT = enum.auto()
    """Applied; the answer lacks an item."""


_BEFORE = (Trouble.REFUSED, Trouble.LOST_BEFORE, Trouble.HANGS_BEFORE)


class Refusal(NamedTuple):
    """An answer that refuses a whole request.

    Attributes:
        applied: how many of the first items are stored all the same, as incremental bulk does; nothing by default.
        html: it is a proxy that speaks.
    """

    status: int
    error_type: str = ""
    reason: str = ""
    applied: int = 0
    retry_after_seconds: float = 0.0
    html: bool = False


class Failure(NamedTuple):
    """What is wrong with one item."""

    status: int
    error_type: str
    reason: str
    caused_by: str = ""


TARGET_FAILURES = {
    "blocked": Failure(
        403, "cluster_block_exception", "index [documents] blocked by: [FORBIDDEN/8/index write (api)];"
    ),
    "closed": Failure(400, "index_closed_exception", "closed"),
    "missing": Failure(404, "index_not_found_exception", "no such index"),
}
"""What items meet whose index takes nothing: a matter of its state, not of theirs."""


@dataclass(slots=True)
class Item:
    """An operation, as read from the body of a request."""

    action: str
    index: str
    document_id: str | None
    parameters: dict[str, object]
    source: bytes


class Applied(NamedTuple):
    """An operation that changed something, or was found to be done already.

    Attributes:
        at: virtual seconds.
        request: the number of the request.
        source: the document as stored; None when it was deleted.
    """

    at: float
    request: int
    action: str
    source: bytes | None
    version: int


@dataclass(slots=True)
class Request:
    """What was asked, and what came of it.

    Attributes:
        number: from 0; `LOOK` for one that only looks whether Elasticsearch is there, which is not in `requests`.
        at: when it arrived, in virtual seconds.
        outcome: ``stored``, ``partial``, the name of a `Trouble`, or the status of a refusal.
        ids: of its items; None where Elasticsearch was to make one.
    """

    number: int
    at: float
    items: int
    size_bytes: int
    outcome: str = "waiting"
    ids: list[str | None] = field(default_factory=list)


class Client:
    """A client of its own, where there are several: the port `sidecar.ports.Sink`.

    Attributes:
        in_flight: requests that it waits for.
        open_documents: how many operations on each document it waits for.
        crowded: documents of which there were two at a time.
    """

    def __init__(self, elasticsearch: Elasticsearch) -> None:
        self.in_flight = 0
        self.open_documents: Counter[tuple[str, str]] = Counter()
        self.crowded: list[tuple[str, str]] = []
        self._elasticsearch = elasticsearch

    async def bulk(self, path: str, body: bytes) -> Answer:
        """Take one request."""
        return await self._elasticsearch.bulk(path, body, client=self)

    async def check(self) -> str | None:
        """Say whether Elasticsearch answers."""
        return await self._elasticsearch.check()


@dataclass(slots=True, eq=False)
class Sent:
    """A request as its client sees it.

    Attributes:
        outcome: ``waiting``; the status of its answer; ``unanswered``; or ``cut off``, where the client went away.
    """

    client: Client | Elasticsearch
    at: float
    items: list[Item]
    answer: asyncio.Future[Answer]
    life: int
    outcome: str = "waiting"
    body: bytes = b""
    request: Request | None = None


class RequestFault(Exception):  # noqa: N818 - it is a value that ends the reading of a request
    """The request is refused as a whole."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


class Elasticsearch:
    """The cluster: its documents, its write pool, and a script of what goes wrong.

    Args:
        rng: the only source of chance.
        latency_seconds: the least and the most that a request takes each way.
        item_seconds: what each item takes, besides.
        capacity_items: what the write pool takes at once; beyond it items get a 429.
        timeout_seconds: the client's patience.
        max_content_bytes: a longer body gets a 413.

    Attributes:
        trouble: looked at when a request arrives: what happens to it, or None.
        looks_see_trouble: looks at the server itself meet the trouble as well; otherwise it seems to be well.
        reject: says of a document what is wrong with it, or None; `must_be_number` for instance.
        has_failure_store: all targets are data streams, whose failure stores take what they reject.
        failure_store: the documents in there.
        item_fault: likewise of an item, by its index (missing, blocked, forbidden, …).
        poison: of a source that spoils its whole request.
        documents: what is stored, by index and id.
        history: all that was ever applied to each document, in order.
        requests: every request.
        statuses: of all items answered.
        applied: how often each source was stored.
        in_flight: requests that a client waits for; `most_in_flight` is the most there ever were.
        open_documents: how many operations on each document clients wait for.
        crowded: documents of which there were two at a time.
        on_sent: told of each request that left a client.
        on_ended: told of each request when its client stopped waiting for it.
        on_result: told of each item that was dealt with: an int is a success.
        down: connections are refused.
        slow_seconds: the least and the most that a request takes besides: a long pause of a garbage collector.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        latency_seconds: tuple[float, float] = (0.001, 0.02),
        item_seconds: float = 0.00001,
        capacity_items: int | None = None,
        timeout_seconds: float = 60.0,
        max_content_bytes: int = _MAX_CONTENT_BYTES,
    ) -> None:
        self.trouble: Callable[[Request], Trouble | Refusal | None] = lambda _: None
        self.has_failure_store = False
        self.failure_store: list[bytes] = []
        self.reject: Callable[[dict[str, object], str | None], Failure | None] = lambda _document, _id: None
        self.item_fault: Callable[[Item], Failure | None] = lambda _: None
        self.poison: Callable[[bytes], bool] = lambda _: False
        self.looks_see_trouble = False
        self.documents: dict[tuple[str, str], bytes] = {}
        self.versions: dict[tuple[str, str], int] = {}
        self.history: dict[tuple[str, str], list[Applied]] = {}
        self.requests: list[Request] = []
        self.statuses: Counter[int] = Counter()
        self.applied: Counter[bytes] = Counter()
        self.open_documents: Counter[tuple[str, str]] = Counter()
        self.crowded: list[tuple[str, str]] = []
        self.on_sent: Callable[[Sent], None] | None = None
        self.on_ended: Callable[[Sent], None] | None = None
        self.on_result: Callable[[Request, Item, int | Failure], None] | None = None
        self.down = False
        self.slow_seconds: tuple[float, float] | None = None
        self._lives = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.capacity_items = capacity_items
        self.latency_seconds = latency_seconds
        self.item_seconds = item_seconds
        self._dice = rng
        self._timeout_seconds = timeout_seconds
        self.max_content_bytes = max_content_bytes
        self._busy_items = 0
        self._made_ids = 0

    # The port --------------------------------------------------------------------------------------------------------

    async def bulk(self, path: str, body: bytes, *, client: Client | None = None) -> Answer:
        """Take one request.

        Raises:
            SinkError: no answer came.
        """
        place = client or self
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        items: list[Item] = []
        refusal: Refusal | None = None
        try:
            for item in read(path, body):
                items.append(item)  # noqa: PERF402 - what came before a fault counts
        except RequestFault as fault:
            refusal = fault.refusal
        # What is on its way arrives even when the client doesn't wait any more: so it is no part of the client's task.
        sent = Sent(place, loop.time(), items, answer, self._lives)
        loop.call_later(self._latency(), self._arrive, sent, len(body), refusal)
        names = [(item.index, item.document_id) for item in items if item.document_id is not None]
        self._depart(names, place)
        if self.on_sent is not None:
            self.on_sent(sent)
        sent.outcome = "cut off"
        try:
            async with asyncio.timeout(self._timeout_seconds):
                got = await answer
            sent.outcome, sent.body = str(got.status), got.body
        except TimeoutError:
            sent.outcome = "unanswered"
            raise SinkError("no answer from Elasticsearch: Connection timed out") from None
        except SinkError:
            sent.outcome = "unanswered"
            raise
        else:
            return got
        finally:
            place.in_flight -= 1
            place.open_documents.subtract(names)
            if self.on_ended is not None:
                self.on_ended(sent)

    def restart(self) -> None:
        """End and begin anew: documents stay; of the requests in work a part is applied, and none is answered."""
        self._lives += 1
        self._busy_items = 0

    async def check(self) -> str | None:
        """Say whether it answers, which is what its trouble leaves of it."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._latency())
        if self.down:
            return "no answer from Elasticsearch: Connection refused"
        trouble = self.trouble(Request(LOOK, loop.time(), 0, 0)) if self.looks_see_trouble else None
        if trouble in (Trouble.HANGS_BEFORE, Trouble.HANGS_AFTER, Trouble.LATE):
            await asyncio.sleep(_LOOK_SECONDS)
            return "no answer from Elasticsearch: Connection timed out"
        if isinstance(trouble, Refusal):
            stranger = trouble.html or trouble.status in _REDIRECTS
            return f"answered {trouble.status}" if stranger or trouble.status in _NOT_THERE else None
        return "no answer from Elasticsearch" if trouble in (Trouble.REFUSED, Trouble.LOST_BEFORE) else None

    def _depart(self, names: list[tuple[str, str]], place: Client | Elasticsearch) -> None:
        place.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, place.in_flight)
        place.open_documents.update(names)
        place.crowded += [name for name in names if place.open_documents[name] > 1]

    def _latency(self) -> float:
        return self._dice.uniform(*self.latency_seconds)

    # A request -------------------------------------------------------------------------------------------------------

    def _arrive(self, sent: Sent, size_bytes: int, refusal: Refusal | None) -> None:
        items, answer = sent.items, sent.answer
        if self.down or sent.life != self._lives:
            _break(answer, "Connection refused" if self.down else "Server disconnected")
            return
        now = asyncio.get_running_loop().time()
        ids = [item.document_id for item in items]
        request = Request(len(self.requests), now, len(items), size_bytes, ids=ids)
        self.requests.append(request)
        sent.request = request
        if refusal is not None:
            # What was read before the fault may be applied already: bodies are taken in pieces.
            refusal = refusal._replace(applied=self._dice.randint(0, len(items)))
        trouble = self.trouble(request)
        if trouble is None and size_bytes > self.max_content_bytes:
            trouble = Refusal(413)
        poisoned = next((at for at, item in enumerate(items) if self.poison(item.source)), None)
        if refusal is None and poisoned is not None and trouble not in _BEFORE and not isinstance(trouble, Refusal):
            reason = f"[1:{10 + poisoned}] [UpdateRequest] unknown field"
            refusal = Refusal(400, "x_content_parse_exception", reason, applied=self._dice.randint(0, poisoned))
            # Whether the answer gets lost or not: what is refused as a whole isn't applied.
            trouble = Trouble.LOST_BEFORE if trouble is Trouble.LOST_AFTER else None
        self._act(request, items, trouble or refusal, answer)

    def _act(
        self, request: Request, items: list[Item], trouble: Trouble | Refusal | None, answer: asyncio.Future[Answer]
    ) -> None:
        loop = asyncio.get_running_loop()
        if isinstance(trouble, Refusal):
            request.outcome = str(trouble.status)
            for at, item in enumerate(items[: trouble.applied]):
                self._apply(request, item, at)
            loop.call_later(self._latency(), _give, answer, _refusal(trouble))
            return
        if trouble is not None:
            request.outcome = trouble.name.lower()
        if trouble in _BEFORE:
            if trouble is not Trouble.HANGS_BEFORE:
                _break(answer, "Connection refused" if trouble is Trouble.REFUSED else "Server disconnected")
            return
        admitted = self._admit(items)
        work = self._latency() + self.item_seconds * len(items)
        if self.slow_seconds is not None:
            work += self._dice.uniform(*self.slow_seconds)
        if trouble is Trouble.LATE:
            work += self._timeout_seconds + self._dice.uniform(0.0, 30.0)
        loop.call_later(work, self._finish, request, items, admitted, trouble, answer, self._lives)

    def _admit(self, items: list[Item]) -> list[bool]:
        """Say of each item whether the write pool has room for it: piece by piece of the body, and shard by shard."""
        if self.capacity_items is None:
            self._busy_items += len(items)  # should the pool become small meanwhile
            return [True] * len(items)
        admitted = [False] * len(items)
        start = 0
        while start < len(items):
            end = min(len(items), start + self._dice.randint(1, max(1, len(items))))
            shards = list(range(_SHARDS))
            self._dice.shuffle(shards)
            for shard in shards:
                mine = [at for at in range(start, end) if _shard(items[at], at) == shard]
                if self._busy_items + len(mine) <= self.capacity_items:
                    self._busy_items += len(mine)
                    for at in mine:
                        admitted[at] = True
            start = end
        return admitted

    def _finish(
        self,
        request: Request,
        items: list[Item],
        admitted: list[bool],
        trouble: Trouble | None,
        answer: asyncio.Future[Answer],
        life: int,
    ) -> None:
        if life != self._lives:
            self._flush(request, items, answer)
            return
        results = []
        for at, (item, has_room) in enumerate(zip(items, admitted, strict=True)):
            if has_room:
                self._busy_items -= 1
                results.append((item.action, self._apply(request, item, at)))
            else:
                results.append((item.action, _REJECTED_EXECUTION))
        for _, result in results:
            self.statuses[result if isinstance(result, int) else result.status] += 1
        failed = any(isinstance(result, Failure) for _, result in results)
        if trouble is None:
            request.outcome = "partial" if failed else "stored"
        if trouble in (Trouble.HANGS_AFTER, Trouble.LATE):
            return
        if trouble is Trouble.LOST_AFTER:
            _break(answer, "Server disconnected")
            return
        body = render(results[:-1] if trouble is Trouble.SHORT else results)
        if trouble is Trouble.UNREADABLE:
            body = body[: len(body) // 2]
        asyncio.get_running_loop().call_later(self._latency(), _give, answer, Answer(200, body))

    def _flush(self, request: Request, items: list[Item], answer: asyncio.Future[Answer]) -> None:
        """Apply of a request what the restart left of it: any number of its first items."""
        request.outcome = "restarted"
        for at, item in enumerate(items[: self._dice.randint(0, len(items))]):
            self._apply(request, item, at)
        _break(answer, "Server disconnected")

    # One item --------------------------------------------------------------------------------------------------------

    def _apply(self, request: Request, item: Item, position: int) -> int | Failure:
        """Apply an operation; return its status, or what was wrong with it."""
        result = self._apply_one(request, item, position)
        if self.on_result is not None:
            self.on_result(request, item, result)
        return result

    def _apply_one(self, request: Request, item: Item, position: int) -> int | Failure:
        fault = _name_fault(item) or self.item_fault(item)
        if fault is not None:
            return fault
        if item.action == "delete":
            return self._delete(request, item)
        parsed = _parse(item.source)
        if isinstance(parsed, Failure):
            return parsed
        if item.action == "update":
            return self._update(request, item, parsed)
        wrong = self.reject(parsed, item.document_id)
        if wrong is not None and self.has_failure_store:
            self.failure_store.append(item.source)
            return InFailureStore(201)
        if wrong is not None:
            return wrong
        if item.document_id is None:
            self._made_ids += 1
            item.document_id = f"made-{request.number}-{position}-{self._made_ids}"
        key = item.index, item.document_id
        return self._write(request, item, key, item.source)

    def _write(self, request: Request, item: Item, key: tuple[str, str], source: bytes | None) -> int | Failure:
        exists = key in self.documents
        present = self.versions.get(key, 0)
        version = present + 1
        if item.action == "create" and exists:
            return _conflict(key, f"document already exists (current version [{present}])")
        kind = item.parameters.get("version_type", "internal")
        if kind in _EXTERNAL:
            version = int(str(item.parameters["version"]))
            # A delete leaves its version behind for a while (index.gc_deletes).
            stale = version < present if kind == "external_gte" else version <= present
            if stale and present:
                reason = f"current version [{present}] is higher or equal to the one provided [{version}]"
                return _conflict(key, reason)
        self.versions[key] = version
        if source is None:
            del self.documents[key]
        else:
            self.documents[key] = source
            self.applied[source] += 1
        now = asyncio.get_running_loop().time()
        self.history.setdefault(key, []).append(Applied(now, request.number, item.action, source, version))
        return 200 if exists else 201

    def _delete(self, request: Request, item: Item) -> int | Failure:
        key = item.index, item.document_id or ""
        if key not in self.documents:
            if item.parameters.get("version_type") in _EXTERNAL:
                self.versions[key] = max(self.versions.get(key, 0), int(str(item.parameters["version"])))
            return 404
        return self._write(request, item, key, None)

    def _update(self, request: Request, item: Item, fragment: dict[str, object]) -> int | Failure:
        key = item.index, item.document_id or ""
        present = self.documents.get(key)
        change = fragment.get("doc")
        wrong = self.reject(change, item.document_id) if isinstance(change, dict) else None
        if wrong is not None:
            return wrong
        if present is None:
            upsert = fragment.get("upsert") or (fragment.get("doc") if fragment.get("doc_as_upsert") else None)
            if upsert is None:
                return Failure(404, "document_missing_exception", f"[{key[1]}]: document missing")
            return self._write(request, item, key, json.dumps(upsert, separators=(",", ":")).encode())
        document = json.loads(present)
        merged = merge(document, change if isinstance(change, dict) else {})
        if merged == document:
            return 200
        return self._write(request, item, key, json.dumps(merged, separators=(",", ":")).encode())

    # For judges ------------------------------------------------------------------------------------------------------

    def sources(self, index: str) -> list[bytes]:
        """Return the documents of an index, in the order in which they were first stored."""
        return [source for (name, _), source in self.documents.items() if name == index]


def merge(stored: dict[str, object], change: dict[str, object]) -> dict[str, object]:
    """Return a document with a partial update applied: objects are merged, everything else is replaced."""
    merged = dict(stored)
    for name, value in change.items():
        there = merged.get(name)
        both = isinstance(there, dict) and isinstance(value, dict)
        merged[name] = merge(there, value) if both else value  # type: ignore[arg-type]
    return merged


def must_be_number(name: str) -> Callable[[dict[str, object], str | None], Failure | None]:
    """Return what a mapping of field `name` as ``long`` says to documents."""

    def look(document: dict[str, object], document_id: str | None) -> Failure | None:
        value = document.get(name)
        if value is None or isinstance(value, (int, float)):
            return None
        if isinstance(value, str) and value.lstrip("-").isdecimal():
            return None
        named = f"with id '{document_id}'" if document_id is not None else "with an auto-generated id"
        reason = f"[1:6] failed to parse field [{name}] of type [long] in document {named}."
        if isinstance(value, (str, list)):
            reason += f" Preview of field's value: '{value}'"
        return Failure(400, "document_parsing_exception", reason, f'For input string: "{value}"')

    return look


_REJECTED_EXECUTION = Failure(
    429,
    "es_rejected_execution_exception",
    "rejected execution of TimedRunnable{original=org.elasticsearch.action.bulk.TransportShardBulkAction} on "
    "TaskExecutionTimeTrackingEsThreadPoolExecutor[name = node/write, queue capacity = 1]",
)


def _conflict(key: tuple[str, str], why: str) -> Failure:
    return Failure(409, "version_conflict_engine_exception", f"[{key[1]}]: version conflict, {why}")


def _shard(item: Item, position: int) -> int:
    name = item.document_id if item.document_id is not None else str(position)
    return zlib.crc32(name.encode()) % _SHARDS


def _give(future: asyncio.Future[Answer], answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


def _break(future: asyncio.Future[Answer], why: str) -> None:
    if not future.done():
        future.set_exception(SinkError(f"no answer from Elasticsearch: {why}"))


def _refusal(refusal: Refusal) -> Answer:
    if refusal.html:
        body = b"<html><head><title>%d</title></head></html>" % refusal.status
    elif refusal.error_type:
        error = {"type": refusal.error_type, "reason": refusal.reason}
        body = json.dumps({"error": {"root_cause": [error], **error}, "status": refusal.status}).encode()
    elif refusal.reason:  # Elasticsearch says some things in bare text
        body = json.dumps({"error": refusal.reason, "status": refusal.status}).encode()
    else:
        body = b""
    return Answer(refusal.status, body, refusal.retry_after_seconds)


class InFailureStore(int):
    """The status of a document that a data stream refused, and that its failure store took."""


def render(results: list[tuple[str, int | Failure]]) -> bytes:
    """Return an answer as the product's ``filter_path`` leaves it."""
    items: list[dict[str, dict[str, object]]] = []
    for action, result in results:
        if isinstance(result, int):
            used: dict[str, object] = {"failure_store": "used"} if isinstance(result, InFailureStore) else {}
            items.append({action: {"status": result, **used}})
            continue
        error: dict[str, object] = {"type": result.error_type, "reason": result.reason}
        if result.caused_by:
            error["caused_by"] = {"type": "illegal_argument_exception", "reason": result.caused_by}
        items.append({action: {"status": result.status, "error": error}})
    errors = any(isinstance(result, Failure) for _, result in results)
    return json.dumps({"errors": errors, "items": items}, separators=(",", ":"), ensure_ascii=False).encode()


# Reading -------------------------------------------------------------------------------------------------------------


def _refuse(error_type: str, reason: str) -> RequestFault:
    return RequestFault(Refusal(400, error_type, reason))


def read(path: str, body: bytes) -> Iterator[Item]:
    """Read the body of a ``_bulk`` request as strictly as Elasticsearch does, item by item.

    Raises:
        RequestFault: it is refused as a whole; what was yielded came before the fault.
    """
    place, _, query = path.partition("?")
    assert place.endswith("/_bulk"), place
    assert "filter_path=errors,items.*.status,items.*.error" in query, query
    default_index = unquote(place[1 : -len("/_bulk")]) or None
    if not body:
        raise _refuse("parse_exception", "request body is required")
    if not body.endswith(b"\n"):
        raise _refuse("illegal_argument_exception", "The bulk request must be terminated by a newline [\\n]")
    lines = body[:-1].split(b"\n")
    at = 0
    while at < len(lines):
        item = _action(lines[at], at + 1, default_index)
        at += 1
        if item.action != "delete":
            if at >= len(lines):
                raise _refuse("illegal_argument_exception", "The bulk request must be terminated by a newline [\\n]")
            item.source = lines[at]
            at += 1
            if item.action == "update":
                _check_update(item.source)
        _check_version(item)
        yield item


def _action(line: bytes, number: int, default_index: str | None) -> Item:
    try:
        parsed = _strict(line)
    except ValueError as error:
        raise _refuse("x_content_parse_exception", f"[{number}:1] {error}") from None
    if not isinstance(parsed, dict) or len(parsed) != 1:
        raise _refuse("illegal_argument_exception", f"Malformed action/metadata line [{number}]")
    ((action, parameters),) = parsed.items()
    if action not in ACTIONS:
        reason = f"Malformed action/metadata line [{number}], expected field [create], [delete], [index] or [update]"
        raise _refuse("illegal_argument_exception", f"{reason} but found [{action}]")
    if not isinstance(parameters, dict):
        raise _refuse("illegal_argument_exception", f"Malformed action/metadata line [{number}], expected START_OBJECT")
    for name in parameters:
        if name not in _PARAMETERS:
            reason = f"Action/metadata line [{number}] contains an unknown parameter [{name}]"
            raise _refuse("illegal_argument_exception", reason)
    index = parameters.get("_index", default_index)
    if index is None:
        raise _refuse("action_request_validation_exception", "Validation Failed: 1: index is missing;")
    document_id = parameters.get("_id")
    if isinstance(document_id, str) and len(document_id.encode()) > _MAX_ID_BYTES:
        reason = f"id [{document_id}] is too long, must be no longer than 512 bytes"
        raise _refuse("action_request_validation_exception", f"Validation Failed: 1: {reason};")
    return Item(action, str(index), None if document_id is None else str(document_id), parameters, b"")


def _check_version(item: Item) -> None:
    parameters = item.parameters
    if item.action in ("update", "delete") and item.document_id is None:
        raise _refuse("action_request_validation_exception", "Validation Failed: 1: id is missing;")
    if "version" not in parameters:
        return
    external = parameters.get("version_type") in _EXTERNAL
    if item.document_id is None:
        reason = "an id must be provided if version type or value are set"
    elif item.action == "create" and external:
        reason = "create operations only support internal versioning. use index instead"
    elif int(str(parameters["version"])) < 0:
        reason = f"illegal version value [{parameters['version']}]"
    else:
        return
    raise _refuse("action_request_validation_exception", f"Validation Failed: 1: {reason};")


def _check_update(source: bytes) -> None:
    try:
        parsed = _strict(source)
    except ValueError as error:
        raise _refuse("x_content_parse_exception", f"[1:1] [UpdateRequest] failed to parse: {error}") from None
    known = {"doc", "doc_as_upsert", "upsert", "detect_noop", "script", "scripted_upsert", "_source"}
    for name in parsed if isinstance(parsed, dict) else ():
        if name not in known:
            raise _refuse("x_content_parse_exception", f"[1:2] [UpdateRequest] unknown field [{name}]")


def _strict(data: bytes) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        if len(set(names)) != len(names):
            raise ValueError("Duplicate field")
        return dict(pairs)

    def constant(name: str) -> object:
        raise ValueError(f"Non-standard token '{name}'")

    return json.loads(data.decode(), object_pairs_hook=unique, parse_constant=constant)


def _parse(source: bytes) -> dict[str, object] | Failure:
    try:
        parsed = _strict(source)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and source[error.pos :].lstrip()[:1] == b"{":
            reason = "Malformed content, found extra data after parsing: START_OBJECT"
            return Failure(400, "illegal_argument_exception", reason)
        return Failure(400, "document_parsing_exception", f"[1:{error.pos + 1}] failed to parse: {error.msg}")
    except (ValueError, RecursionError) as error:
        return Failure(400, "document_parsing_exception", f"[1:1] failed to parse: {error}")
    if not isinstance(parsed, dict):
        return Failure(400, "document_parsing_exception", "[1:1] failed to parse: Expecting START_OBJECT")
    return parsed


def _name_fault(item: Item) -> Failure | None:
    name = item.index
    if name != name.lower() or name[:1] in ("-", "_", "+") or any(sign in name for sign in ' "*\\<|,>/?#:'):
        return Failure(400, "invalid_index_name_exception", f"Invalid index name [{name}], must be lowercase")
    if item.document_id == "":
        return Failure(400, "illegal_argument_exception", "if _id is specified it must not be empty")
    return None
