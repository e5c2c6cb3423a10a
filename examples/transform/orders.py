"""Documents of one's own making: an order becomes a document for each of its lines, a draft none.

SIDECAR_TRANSFORM=orders:lines, in this folder, with the settings in ``orders.env``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidecar import Message


def lines(message: Message) -> list[dict[str, Any]] | None:
    """Return a document for each line of an order, with the order's customer; nothing of a draft."""
    order: Any = message.json()
    if order["state"] == "draft":
        return None
    common = {"order": message.message_id, "customer": order["customer"]}
    return [{**common, "sku": line["sku"], "amount": line["price"] * line["count"]} for line in order["lines"]]
