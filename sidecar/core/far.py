"""How what lies on the far side is called: in the log, and where the sidecar says why it isn't ready."""

from __future__ import annotations

from typing import NamedTuple


class Far(NamedTuple):
    """The names of the far side.

    Attributes:
        waiting: why the sidecar isn't ready while nothing is consumed before it answers.
        unreachable: the event that it can't be reached.
        reached: that it can be, after all.
        throttled: that it has no room.
        held: that nothing but probes is sent.
        resumed: that this is over.
    """

    waiting: str
    unreachable: str
    reached: str
    throttled: str
    held: str
    resumed: str


ELASTICSEARCH = Far(
    "waiting-for-elasticsearch",
    "elasticsearch.unreachable",
    "elasticsearch.reached",
    "elasticsearch.throttled",
    "elasticsearch.held",
    "elasticsearch.resumed",
)
SINK = Far(
    "waiting-for-sink",
    "sink.unreachable",
    "sink.reached",
    "sink.throttled",
    "sink.held",
    "sink.resumed",
)
"""Another exchange (``SIDECAR_SINK=amqp``)."""
HANDLER = ELASTICSEARCH._replace(waiting="waiting-for-handler", held="handler.held", resumed="handler.resumed")
"""The handler of the library: it is always reachable, and never throttles."""
