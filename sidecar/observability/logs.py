"""structlog: a line an event, JSON where nobody watches."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

# structlog imports rich where it is installed, for tracebacks, which ours are text by then: 3 MiB, and a quarter of the
# time that it takes to start. To an import `None` means that there is none.
_rich = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402

if _rich is None:
    del sys.modules["rich"]
else:
    sys.modules["rich"] = _rich

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger, Processor


def configure(level: str, style: str) -> FilteringBoundLogger:
    """Set up logging to standard error and return the logger.

    Args:
        level: the least level that is shown, as of `logging`, in lower case.
        style: ``json``, ``console``, or ``auto``: console on a terminal.
    """
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: Processor
    if console:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    else:
        renderer = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger
