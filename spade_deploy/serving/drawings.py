"""The maps that edits build on: the newest map of each drawing, held under an id, with a version.

Little is held, and not for ever: of more drawings or bytes than fit, the one that was not used for longest goes. It is
never a loss, since whoever draws has the whole map. An edit says which version it builds on, and is refused unless the
map that is held is just that one.

Where the engine can, the photos of drawings are made from rows that are kept from map to map: `runtime_of`.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from spade_deploy.engines.base import KeepsRows, Runtime
from spade_deploy.errors import SpadeError
from spade_deploy.serving.maps import Maps
from spade_deploy.serving.models import ServedModel

MOST_DRAWINGS = 256
"""How many drawings a process holds."""
MOST_BYTES = 128 << 20
"""How many bytes their maps may take together."""
KEPT_S = 1800.0
"""Seconds after which a drawing is let go that nobody edits."""

_HINT = "send the whole map (`label`) again: it begins a new drawing, which later edits can change"


class OtherMapError(SpadeError):
    """An edit builds on a map that is not held here."""


@dataclass(frozen=True)
class Drawing:
    """One state of a drawing."""

    key: str
    """The id by which edits name it; it cannot be guessed."""
    version: int
    """The number of its map; each edit makes another one."""
    model: str
    """The name of the model that draws it."""
    maps: Maps
    """Its maps, at their own size."""


class Drawings:
    """The drawings of one process. Safe to be used by several threads.

    clock: seconds that only grow. most_row_bytes: what the kept rows of all models may take; 0 keeps none.
    """

    def __init__(
        self,
        most: int = MOST_DRAWINGS,
        most_bytes: int = MOST_BYTES,
        kept_s: float = KEPT_S,
        clock: Callable[[], float] = time.monotonic,
        most_row_bytes: int = 0,
    ) -> None:
        self._most, self._most_bytes, self._kept_s, self._clock = most, most_bytes, kept_s, clock
        self._held: OrderedDict[str, tuple[float, Drawing]] = OrderedDict()
        self._bytes = 0
        self._most_row_bytes = most_row_bytes
        self._runtimes: dict[str, Runtime] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def num_bytes(self) -> int:
        """What all maps take together."""
        return self._bytes

    def runtime_of(self, model: ServedModel, models: int) -> Runtime:
        """What makes the photos of a model's drawings. models: how many share the memory for rows."""
        with self._lock:
            if model.name not in self._runtimes:
                most = self._most_row_bytes // models
                kept = model.runtime.keeping_rows(most) if most and isinstance(model.runtime, KeepsRows) else None
                self._runtimes[model.name] = model.runtime if kept is None else kept
            return self._runtimes[model.name]

    def begin(self, model: str, maps: Maps, version: int = 1, key: str = "") -> Drawing:
        """Hold the whole map of a drawing. key: the id of one whose map is replaced; a new one for none."""
        drawing = Drawing(key or secrets.token_urlsafe(16), version, model, maps)
        with self._lock:
            self._put(drawing)
        return drawing

    def find(self, key: str, base: int) -> Drawing:
        """The drawing, whose map has the version that an edit builds on. Raises OtherMapError."""
        with self._lock:
            return self._find(key, base)

    def go_on(self, base: Drawing, maps: Maps, version: int | None = None) -> Drawing:
        """Hold the map that an edit has made of `base`. version: one more than before if left out.

        Raises OtherMapError if another edit was faster.
        """
        drawing = Drawing(base.key, base.version + 1 if version is None else version, base.model, maps)
        with self._lock:
            if self._find(base.key, base.version) is not base:
                raise _stale(base.version, base.version)
            self._put(drawing)
        return drawing

    def drop(self, key: str) -> None:
        """Let a drawing go, if it is held."""
        with self._lock:
            self._remove(key)

    def _find(self, key: str, base: int) -> Drawing:
        self._let_go()
        if key not in self._held:
            raise OtherMapError(
                "this drawing is unknown here: either it was not edited for a long time, or another process has it",
                hint=_HINT,
            )
        drawing = self._held[key][1]
        if drawing.version != base:
            raise _stale(base, drawing.version)
        return drawing

    def _put(self, drawing: Drawing) -> None:
        self._remove(drawing.key)
        self._held[drawing.key] = self._clock(), drawing
        self._bytes += drawing.maps.num_bytes
        self._let_go()

    def _remove(self, key: str) -> None:
        if key in self._held:
            self._bytes -= self._held.pop(key)[1].maps.num_bytes

    def _let_go(self) -> None:
        oldest = self._clock() - self._kept_s
        while self._held:
            key, (used, _) = next(iter(self._held.items()))
            if used >= oldest and len(self._held) <= self._most and self._bytes <= self._most_bytes:
                return
            self._remove(key)


def _stale(base: int, held: int) -> OtherMapError:
    return OtherMapError(
        f"`base`: the edit builds on version {base} of the drawing, but the server has version {held}", hint=_HINT
    )
