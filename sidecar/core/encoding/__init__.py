"""From a delivery to an action line and a document."""
