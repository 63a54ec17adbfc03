"""The lanes of one engine, lent to the threads that ask for one."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from spade_deploy.engines.tensorrt.lane import Lane
from spade_deploy.errors import RuntimeUnavailableError


class Lanes:
    """A pool of lanes: a thread takes a free lane and gives it back."""

    def __init__(self, name: str, lanes: Sequence[Lane]) -> None:
        self._name = name
        self._all = list(lanes)
        self._free = list(lanes)
        self._holders: dict[Lane, int] = {}
        self._changed = threading.Condition()
        self.is_closed = False

    def take(self) -> Lane:
        """Take a free lane, or wait until one is free. Raises RuntimeUnavailableError if none can become free."""
        me = threading.get_ident()
        with self._changed:
            while True:
                self.check_open()
                if self._free:
                    lane = self._free.pop()  # the one used last: its graphs are the warmest
                    self._holders[lane] = me
                    return lane
                if set(self._holders.values()) == {me}:
                    raise RuntimeUnavailableError(
                        f"{self._name}: its {len(self._all)} contexts are in use by run_many in this thread",
                        hint="finish or close those iterators first, or open the runtime with more contexts",
                    )
                self._changed.wait()

    def give(self, lane: Lane) -> None:
        with self._changed:
            self._holders.pop(lane, None)
            self._free.append(lane)
            self._changed.notify_all()

    def close(self) -> list[Lane] | None:
        """Wait until no other thread holds a lane, and return all lanes; None if the pool was closed before."""
        me = threading.get_ident()
        with self._changed:
            if self.is_closed:
                return None
            self.is_closed = True
            self._changed.notify_all()  # wake the threads that wait for a lane
            while set(self._holders.values()) - {me}:
                self._changed.wait()
            return self._all

    def check_open(self) -> None:
        if self.is_closed:
            raise RuntimeUnavailableError(f"{self._name}: it was closed")
