"""Logging to stderr: one line an event, for people or for machines."""

import json
import logging
import os
import sys
import time
import traceback
from typing import Literal

from lb.events import told

Format = Literal["text", "json"]


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime


class _Journal(logging.Formatter):
    """journald has the time itself, and reads the level at the start of each line. Source: sd-daemon(3)."""

    def format(self, record: logging.LogRecord) -> str:
        level = 3 if record.levelno >= logging.ERROR else 4 if record.levelno >= logging.WARNING else 6
        return "\n".join(f"<{level}>{line}" for line in super().format(record).splitlines())


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (what := told(record)) is not None:
            entry |= {"event": what.kind, "about": what.about}
        if record.exc_info and record.exc_info[1] is not None:
            entry["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(entry)


def setup(style: Format, *, level: int = logging.INFO) -> None:
    """Sends the log of the process to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Journal() if _is_journal() else _Text())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("aiohttp").setLevel(logging.WARNING)


def _is_journal() -> bool:
    """Whether stderr is journald's, and not what somebody has put in its place. Source: systemd.exec(5)."""
    status = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
