"""The one exception of this package."""

from __future__ import annotations


class StackError(Exception):
    """A server can't be provided, started or told what to do; the text says why and what to do about it."""
