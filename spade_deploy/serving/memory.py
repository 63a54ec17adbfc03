"""How much memory clients may fill: one budget for what all of them have sent, and for what pages have yet to take."""

from __future__ import annotations

BODIES = 8
"""As many times `max_bytes` may be held together."""
FULL = "the memory for the bodies of requests is full"
HINT = "send it again a little later"
TRY_LATER = 1013
"""The code with which a WebSocket is closed where they hold too much: try again later."""


class Budget:
    """Counts the bytes that are held for all clients of a process. most: how many that may be."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0

    def share(self) -> Share:
        """What one request, page or connection takes of it."""
        return Share(self)


class Share:
    """The bytes that are held for one client."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0

    def take(self, count: int) -> bool:
        """Hold so many bytes more; False, and nothing more is held, where all clients together would hold too many."""
        if self._budget.held + count > self._budget.most:
            return False
        self._budget.held += count
        self.held += count
        return True

    def give(self, count: int) -> None:
        """Hold so many bytes less."""
        count = min(count, self.held)  # none are left after `close`
        self._budget.held -= count
        self.held -= count

    def close(self) -> None:
        """Hold nothing."""
        self.give(self.held)
