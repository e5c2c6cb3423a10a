"""What is to be known of an exception in somebody's own code: where it came from, and whether it is one at all."""

from __future__ import annotations

import asyncio
from pathlib import Path

_OURS = f"{Path(__file__).parents[1]}/"


def error_location(error: BaseException) -> str:
    """Return the innermost place of an exception outside of the sidecar, for people: file, line and function.

    Not its text: that may quote a message, and neither logs nor headers do.
    """
    traceback, found, is_theirs = error.__traceback__, "?", False
    while traceback is not None:
        code = traceback.tb_frame.f_code
        is_ours = code.co_filename.startswith(_OURS)
        is_theirs = is_theirs or not is_ours
        if not (is_ours and is_theirs):
            found = f"{code.co_filename.rpartition('/')[2]}:{traceback.tb_lineno} in {code.co_name}"
        traceback = traceback.tb_next
    return found


def is_own_cancellation(error: BaseException) -> bool:
    """Whether it is us who are cancelled: at the end. A handler may cancel what it waits for, and let that out."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
