"""The list of results, `results.jsonl`: one line of JSON for each image that was made, and for each failure.

    {"id": "0001", "file": "0001.png", "sha256": "...", "seed": 3, "style": "seed 3", "artifact_sha256": "...",
     "seconds": 0.21, "error": null}

Lines are only added; the last line of an id counts. An image that a killed run made without its line gets one from the
next run, without its seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from spade_deploy.errors import SpadeError, reason_of
from spade_deploy.inference.jobs import Failure, Outcome
from spade_deploy.inference.maker import Maker
from spade_deploy.inference.places.store import LOG, Store
from spade_deploy.inference.places.urls import without_secrets

MOST_BYTES = 8 << 30


def logged_files(store: Store) -> dict[str, str] | None:
    """The file of each id that has an image by the list; None if there is no list. Lines that are damaged do not count.

    Raises SpadeError where it cannot be read.
    """
    try:
        content = store.read(LOG, MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SpadeError(f"{store.name}/{LOG} cannot be read: {reason_of(error)}") from error
    found: dict[str, str] = {}
    for line in content.splitlines():
        try:
            entry = json.loads(line)
            if entry["file"] is None:
                found.pop(entry["id"], None)
            else:
                found[entry["id"]] = entry["file"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return found


class ResultLog:
    """The list of one run. It is closed by `close`."""

    def __init__(self, store: Store, maker: Maker, seed: int | None) -> None:
        self._store, self._maker, self._seed = store, maker, seed
        self._appender = store.appender()

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Append a line for each. Raises OSError, PlaceError."""
        self._appender.add(
            [
                self._line(outcome.id, outcome.file, outcome.sha256, outcome.seconds, outcome.error)
                for outcome in outcomes
            ]
        )

    def add_failures(self, failures: Iterable[Failure]) -> None:
        """Append a line for each label map that was refused before any image was made."""
        self._appender.add([self._line(one.id, None, "", None, one.message) for one in failures])

    def adopt(self, images: Iterable[tuple[str, str]]) -> None:
        """Append a line for each image that is there and has none. images: ids and names."""
        for name, result in images:
            file, sha256 = self._store.digest(result)
            self._appender.add([self._line(name, file, sha256, None, None)])

    def close(self) -> None:
        self._appender.close()

    def _line(self, name: str, file: str | None, sha256: str, seconds: float | None, error: str | None) -> str:
        facts: dict[str, Any] = {
            "id": name,
            "file": file,
            "sha256": sha256 or None,
            "seed": self._seed,
            "style": self._maker.style,
            "artifact_sha256": self._maker.artifact_sha256,
            "seconds": None if seconds is None or file is None else round(seconds, 6),
            "error": None if error is None else without_secrets(error),
        }
        return json.dumps(facts)
