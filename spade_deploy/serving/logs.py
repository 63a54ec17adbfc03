"""What a server logs, and how: a line of text or one JSON object for each event, on stderr."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from spade_deploy.printable import one_line
from spade_deploy.progress import Silent

_LOG = logging.getLogger(__name__)

_LEVELS = {"spade_deploy.serving": logging.INFO, "uvicorn.error": logging.ERROR}
"""What is logged: of the server requests and batches as they come, of the rest what is wrong."""


def start_log(*, as_json: bool = False) -> None:
    """Write the log to stderr. as_json: one JSON object a line, tracebacks included."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(message)s"))
    for name in ("spade_deploy", "uvicorn.error"):
        logging.getLogger(name).handlers = [handler]
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)


def log_request(logger: logging.Logger, request_id: str, scope: Any, status: int, seconds: float) -> None:
    """Log one request. What a client sent is shown in one line, without characters that control a terminal."""
    facts = {
        "request_id": request_id,
        "method": scope.get("method", "WEBSOCKET"),
        "path": one_line(scope["path"][:200]),
        "status": status,
        "ms": round(seconds * 1000, 2),
    }
    logger.info("%(method)s %(path)s %(status)d %(ms).1f ms %(request_id)s", facts, extra={"facts": facts})


class JsonLines(logging.Formatter):
    """Each record as a JSON object in one line: time, level, logger, message, and the facts that came along."""

    def format(self, record: logging.LogRecord) -> str:
        facts = getattr(record, "facts", None)
        told: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        told.update(facts if facts is not None else {"message": record.getMessage()})
        if request_id := getattr(record, "request_id", ""):
            told["request_id"] = request_id
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


class LoggedProgress(Silent):
    """Logs the steps and notes of the start, so that every line of a JSON log is JSON."""

    def step(self, what: str) -> None:
        """A step begins."""
        _LOG.info("%s", what)

    def note(self, text: str) -> None:
        """Something is worth knowing."""
        _LOG.info("%s", text)
