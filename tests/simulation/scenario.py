"""A day as plain data, made from a seed: what is published, what goes wrong, and how everything is set.

Nothing is drawn on the way: a day can be printed, kept, and made smaller by leaving something out.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

PEACE_AT_SECONDS = 60.0
_LAST_PUBLISH_SECONDS = 40.0
_COMPANION_SHARE = 0.3
_COALESCING_SHARE = 0.3
_GUARDED_SHARE = 0.1
_UNDELAYED_SHARE = 0.2
_FOR_EVER_SECONDS = 1e6
_VANISHING_SHARE = 0.15
BEACONS = 10
"""Good messages at the end of each day: an item at fault is only blamed when others pass."""


class Publication(NamedTuple):
    """A message that will be published.

    Attributes:
        at: virtual seconds.
        number: unlike that of any other; it is in the body, and in a header.
        kind: ``good``; ``lines`` (good, with a line break); ``mapping`` (Elasticsearch refuses the document);
            ``malformed``; ``array``; ``poison`` (it spoils whole requests); ``huge`` (more than Elasticsearch takes).
        document: its ``message_id``; empty: it has none.
        index: where it goes, where the message says.
        action: what is to be done, where the message says.
        size: how long its body is made, in bytes, at least.
    """

    at: float
    number: int
    kind: str = "good"
    document: str = ""
    index: str = "documents"
    action: str = "index"
    size: int = 0

    @property
    def body(self) -> bytes:
        """The body, unlike that of any other."""
        padding = "" if not self.size else f',"p":"{"p" * self.size}"'
        form = {
            "good": '{"n":%d%s}',
            "huge": '{"n":%d%s}',
            "lines": '{"n":\n%d%s}',
            "mapping": '{"n":"no %d"%s}',
            "malformed": "not json %d%s",
            "array": "[%d]%s",
            "poison": '{"n":%d,"x":"poison"%s}',
        }[self.kind]
        return (form % (self.number, padding if self.kind not in ("malformed", "array") else "")).encode()

    @property
    def guilty(self) -> bool:
        """Whether it deserves the dead-letter queue; a delete looks at no body."""
        return self.kind not in ("good", "lines") and self.action != "delete"

    @property
    def unfit(self) -> bool:
        """Whether no request can be made of it."""
        return self.kind in ("malformed", "array") and self.action != "delete"


class Fault(NamedTuple):
    """Something that goes wrong for a while.

    Attributes:
        at: when it begins, in virtual seconds.
        seconds: how long it lasts; for ``SIGTERM`` and ``kill`` how long until the sidecar starts again.
        kind: see the tables below.
        share: of the requests or items that it meets.
        target: an index, or the number of a sidecar.
        applied: of a refused request, how many of its first items are applied all the same.
    """

    at: float
    seconds: float
    kind: str
    share: float = 1.0
    target: str = ""
    applied: int = 0


REQUEST_FAULTS = (
    "REFUSED", "LOST_BEFORE", "LOST_AFTER", "HANGS_BEFORE", "HANGS_AFTER", "LATE", "UNREADABLE", "SHORT",
    "proxy 503", "proxy 502", "breaker", "login", "forbidden", "refuses all", "parameter",
)  # fmt: skip
"""What a whole request meets: tests.fakes.elasticsearch.Trouble by name, or an answer that says no."""
ITEM_FAULTS = ("blocked", "closed", "missing", "no privilege", "shards", "failing", "item breaker")
"""What single items meet, by their index."""
CLUSTER_FAULTS = ("pool", "rejecting", "restart", "slow", "slow")
"""What the cluster meets: a small write pool, none at all, a restart, requests that take seconds."""
BROKER_FAULTS = ("session lost", "broker away", "full", "silent", "unroutable", "alarm", "delays full")
DELAY_FAULTS = ("delays full", "delays undeclarable")
"""What keeps messages from being delayed; of the second kind perhaps one delay queue only, by milliseconds."""
SIDECAR_FAULTS = ("SIGTERM", "kill")
DELETIONS = ("queue deleted",)


@dataclass(frozen=True, slots=True)
class Setting:
    """How the sidecars and the servers are set; what the pipeline knows by the same name means the same."""

    action: str = "index"
    id_mode: str = "auto"
    versions: bool = False
    indices: int = 1
    sidecars: int = 1
    batch_max_items: int = 10
    batch_max_bytes: int = 100_000
    batch_max_age_seconds: float = 0.5
    bulk_concurrency: int = 4
    prefetch: int = 100
    memory_limit_bytes: int = 1 << 26
    hold_max_seconds: float = 300.0
    retry_max_attempts: int = 50
    on_conflict: str = "ack"
    on_index_missing: str = "delay"
    on_index_blocked: str = "delay"
    on_reject: str = "dead-letter"
    shutdown_seconds: float = 25.0
    chunk_items: int = 400
    capacity_items: int = 0
    slow: bool = False
    timeout_seconds: float = 30.0
    max_content_bytes: int = 100_000_000
    looks_see_trouble: bool = True
    consumer_timeout_seconds: float = 0.0
    delivery_limit: int = 0
    coalesce: str = "none"
    reject_guard: int = 1000
    on_delay_refused: str = "wait"
    expires_seconds: float = 0.0

    @property
    def by_recipe(self) -> bool:
        """Whether messages say more than their id: the sidecar takes the longer way then."""
        return self.action == "mixed" or self.versions or self.indices > 1 or self.id_mode == "generated"


def written(day: Any) -> str:
    """Return a day of any kind as JSON."""
    return json.dumps({
        "seed": day.seed, "setting": asdict(day.setting), "messages": day.messages, "faults": day.faults
    })  # fmt: skip


def parts_of(
    text: str, setting: Callable[..., Any], message: Callable[..., Any], fault: Callable[..., Any]
) -> tuple[int, Any, tuple[Any, ...], tuple[Any, ...]]:
    """Return the parts of a day that `written` wrote: seed, setting, messages and faults, each of its class."""
    plain: dict[str, Any] = json.loads(text)
    return (
        plain["seed"],
        setting(**plain["setting"]),
        tuple(message(*one) for one in plain["messages"]),
        tuple(fault(*one) for one in plain["faults"]),
    )


def unusual(setting: Any) -> dict[str, object]:
    """Return what differs from the usual setting of its class."""
    usual = asdict(type(setting)())
    return {name: value for name, value in asdict(setting).items() if value != usual[name]}


@dataclass(frozen=True, slots=True)
class Day:
    """Everything that will happen.

    Attributes:
        seed: of what the plan doesn't say: latencies, sizes of chunks, jitter.
    """

    seed: int
    setting: Setting
    messages: tuple[Publication, ...]
    faults: tuple[Fault, ...]

    def as_json(self) -> str:
        """Return it as JSON, to keep and to play again."""
        return written(self)

    @classmethod
    def from_json(cls, text: str) -> Day:
        """Return what `as_json` wrote."""
        return cls(*parts_of(text, Setting, Publication, Fault))

    def unusual(self) -> dict[str, object]:
        """Return the settings that differ from the usual ones."""
        return unusual(self.setting)

    def without_faults(self, *kinds: str) -> Day:
        """Return the day without faults of some kinds."""
        return replace(self, faults=tuple(fault for fault in self.faults if fault.kind not in kinds))


def draw(seed: int) -> Day:
    """Return the day of a seed."""
    return _vanishing(random.Random(f"vanishing {seed}"), _drawn(seed))


def _drawn(seed: int) -> Day:
    rng = random.Random(f"simulation {seed}")
    setting = _setting(rng)
    setting = replace(setting, coalesce=_coalescing(random.Random(f"coalescing {seed}"), setting))
    day = Day(seed, setting, _messages(rng, setting), _faults(rng, setting))
    guarded = _guarded(random.Random(f"guard {seed}"), day)
    if guarded is not day:
        return guarded
    delays = random.Random(f"delays {seed}")
    return _without_delays(delays, day) if delays.random() < _UNDELAYED_SHARE else day


def _guarded(rng: random.Random, day: Day) -> Day:
    """Return some days with a small guard and a run of messages that can't be encoded, longer than it allows.

    All that waits for the guard fits into memory: what ends the hold may be at the end of the queue.
    """
    if rng.random() >= _GUARDED_SHARE:
        return day
    most = rng.choice((2, 5, 10))
    first, count = rng.randrange(len(day.messages)), rng.randrange(most, 4 * most)
    run = [one._replace(kind="malformed") for one in day.messages[first : first + count]]
    messages = (*day.messages[:first], *run, *day.messages[first + count :])
    setting = replace(day.setting, reject_guard=most, prefetch=200, memory_limit_bytes=1 << 26)
    return replace(day, setting=setting, messages=messages)


def _without_delays(rng: random.Random, day: Day) -> Day:
    """Return a day on which delay queues refuse messages, for a while or for ever, and a target is blocked."""
    setting = replace(
        day.setting, indices=3, on_index_blocked="delay", on_delay_refused=rng.choice(("wait", "wait", "dead-letter"))
    )
    at = rng.choice((0.0, rng.uniform(0.0, 10.0)))
    seconds = rng.choice((rng.uniform(0.1, 20.0), rng.uniform(20.0, 50.0), _FOR_EVER_SECONDS))
    kind = rng.choice((DELAY_FAULTS[0], DELAY_FAULTS[1], DELAY_FAULTS[1]))
    only = rng.choice(("", "", "10000", "20000")) if kind == DELAY_FAULTS[1] else ""
    blocked_at, blocked_seconds = round(rng.uniform(0.0, 3.0), 3), round(rng.uniform(1.0, 50.0), 3)
    how, index = rng.choice(("closed", "blocked")), _index(rng.randrange(3), setting)
    blocked = Fault(blocked_at, blocked_seconds, how, 1.0, index)
    faults = (*day.faults, Fault(round(at, 3), round(seconds, 3), kind, 1.0, only), blocked)
    messages = tuple(
        one._replace(index=_index(int(one.document.partition("-")[2] or one.number), setting)) for one in day.messages
    )
    return replace(day, setting=setting, messages=messages, faults=tuple(sorted(faults)))


def _vanishing(rng: random.Random, day: Day) -> Day:
    """Return some days with a queue that expires without a consumer, or that somebody deletes and declares again.

    It expires later than a lost session takes to come back.
    """
    if rng.random() < _VANISHING_SHARE:
        day = replace(day, setting=replace(day.setting, expires_seconds=rng.choice((10.0, 20.0))))
    if rng.random() >= _VANISHING_SHARE:
        return day
    deletion = Fault(round(rng.uniform(0.0, 30.0), 3), round(rng.uniform(0.0, 20.0), 3), DELETIONS[0])
    return replace(day, faults=tuple(sorted((*day.faults, deletion))))


def _coalescing(rng: random.Random, setting: Setting) -> str:
    """Return what is folded, where the judge can tell by what is sent which message that was."""
    if setting.id_mode != "auto" or rng.random() >= _COALESCING_SHARE:
        return "none"
    if setting.action == "upsert":
        return "merge"
    return "latest" if setting.action == "index" or (setting.action == "mixed" and setting.versions) else "none"


def _setting(rng: random.Random) -> Setting:
    pick = rng.choice
    action = pick(("index", "index", "index", "index", "create", "upsert", "mixed"))
    id_mode = pick(("auto", "auto", "auto", "auto", "none", "generated")) if action in ("index", "create") else "auto"
    versions = action in ("index", "mixed") and id_mode == "auto" and rng.random() < 0.35
    batch = pick((1, 5, 10, 10, 30))
    sidecars = pick((1, 1, 1, 1, 2, 3))
    hold_max_seconds = pick((5.0, 20.0, 300.0))
    small = rng.random() < 0.2
    return Setting(
        action=action,
        id_mode=id_mode,
        versions=versions,
        indices=pick((1, 1, 1, 3)),
        sidecars=sidecars,
        batch_max_items=batch,
        batch_max_bytes=pick((300, 100_000, 100_000)),
        batch_max_age_seconds=pick((0.05, 0.5, 1.0)),
        bulk_concurrency=pick((1, 2, 4, 8)),
        # Where only poisonous items fit in, none of them can be told from a fault that fails every request.
        prefetch=max(8, batch * pick((1, 3, 10))),
        memory_limit_bytes=pick((40_000, 12_000)) if small else 1 << 26,
        hold_max_seconds=hold_max_seconds,
        retry_max_attempts=pick((5, 50)),
        on_conflict=pick(("ack", "ack", "dead-letter")),
        on_index_missing=pick(("dead-letter", "delay", "hold")),
        on_index_blocked=pick(("delay", "delay", "dead-letter", "hold")),
        on_reject=pick(("dead-letter", "dead-letter", "dead-letter", "dead-letter", "broker", "discard")),
        shutdown_seconds=pick((5.0, 25.0, 25.0)),
        chunk_items=pick((1, 5, 20)) if small else pick((3, 400)),
        capacity_items=pick((0, 0, 0, 10, 40)),
        slow=rng.random() < 0.3,
        timeout_seconds=pick((10.0, 30.0)),
        max_content_bytes=pick((100_000_000, 100_000_000, 2_000)),
        looks_see_trouble=rng.random() < 0.7,
        consumer_timeout_seconds=pick((0.0, 0.0, hold_max_seconds + 20.0)),  # as `sidecar check` asks for
        delivery_limit=pick((0, 20)),
    )


def _messages(rng: random.Random, setting: Setting) -> tuple[Publication, ...]:
    count = rng.choice((5, 20, 40, 80))
    hot = rng.choice((0, 0, 3, 10))
    with_ids = rng.choice((0.5, 1.0, 1.0)) if setting.action in ("index", "create") and not setting.versions else 1.0
    bad_share = rng.choice((0.0, 0.0, 0.05, 0.2))
    poisons = rng.choice((0, 0, 0, 1, 2))
    kinds = ["mapping", "mapping", "malformed", "array"]
    if setting.max_content_bytes < 1_000_000:
        kinds.append("huge")
    poisonous = rng.sample(range(count), min(poisons, count))
    size = rng.choice((0, 0, 0, 200))
    at = 0.0
    messages = []
    while len(messages) < count:
        for _ in range(min(count - len(messages), rng.choice((1, 1, 5, 40)))):
            number = len(messages)
            kind = rng.choice(("good", "good", "good", "lines")) if rng.random() >= bad_share else rng.choice(kinds)
            kind = "poison" if number in poisonous else kind
            document = ""
            if rng.random() < with_ids:
                document = f"hot-{rng.randrange(hot)}" if hot and rng.random() < 0.7 else f"id-{number}"
            messages.append(
                Publication(
                    at=round(at, 3),
                    number=number,
                    kind=kind,
                    document=document,
                    # One document stays in one index.
                    index=_index(int(document.partition("-")[2] or number), setting),
                    action="delete" if setting.action == "mixed" and rng.random() < 0.3 else "index",
                    size=2_500 if kind == "huge" else size,
                )
            )
        at = min(_LAST_PUBLISH_SECONDS, at + rng.choice((0.0, 0.1, 0.7, 4.0)))
    return tuple(messages)


def _index(number: int, setting: Setting) -> str:
    return "documents" if setting.indices == 1 else f"index-{number % setting.indices}"


def _faults(rng: random.Random, setting: Setting) -> tuple[Fault, ...]:
    faults = []
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
        family = rng.choice((REQUEST_FAULTS, REQUEST_FAULTS, ITEM_FAULTS, CLUSTER_FAULTS, BROKER_FAULTS, BROKER_FAULTS,
                              SIDECAR_FAULTS, SIDECAR_FAULTS))  # fmt: skip
        kind = rng.choice(family)
        at = rng.uniform(0.0, 30.0) if rng.random() < 0.5 else rng.uniform(0.0, 3.0)
        seconds = rng.choice((rng.uniform(0.1, 2.0), rng.uniform(0.1, 25.0)))
        share = 1.0 if rng.random() < 0.6 else rng.uniform(0.1, 0.9)
        target = ""
        if family is ITEM_FAULTS:
            target = _index(rng.randrange(3), setting)
        elif kind in (*SIDECAR_FAULTS, "session lost"):
            target = str(rng.randrange(setting.sidecars))
            seconds = rng.choice((0.0, seconds))
        applied = rng.choice((0, 0, 3, 100)) if kind in ("proxy 503", "proxy 502", "breaker") else 0
        faults.append(Fault(round(at, 3), round(seconds, 3), kind, round(share, 2), target, applied))
        if family in (REQUEST_FAULTS, CLUSTER_FAULTS) and (kind == "slow" or rng.random() < _COMPANION_SHARE):
            # Bugs hide where two things go wrong at once; that requests are slow is nothing bad by itself.
            second = rng.choice(("session lost", "session lost", *SIDECAR_FAULTS))
            moment = rng.uniform(at, at + min(seconds, 5.0))
            pause = rng.choice((0.0, 2.0))
            faults.append(Fault(round(moment, 3), pause, second, 1.0, str(rng.randrange(setting.sidecars))))
    return tuple(sorted(faults))
