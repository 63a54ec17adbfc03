"""`spade serve`: serve artifacts over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spade_deploy.commands.console import note, stderr
from spade_deploy.commands.options import MAIN, RunsFolder, command
from spade_deploy.progress import Silent

if TYPE_CHECKING:
    from spade_deploy.serving.request import ServeRequest


class _Lines(Silent):
    """A server runs for days, so steps are lines, not bars."""

    def step(self, what: str) -> None:
        stderr().print(f"  {what}")

    def note(self, text: str) -> None:
        note(text)


def _requests() -> tuple[type, ...]:
    from spade_deploy.serving.request import ServeRequest

    return ServeRequest, RunsFolder


@command("serve", panel=MAIN, requests=_requests, needs="serve")
def serve(asked: ServeRequest, place: RunsFolder) -> None:
    """Serve artifacts over HTTP: a label map goes in, a photo comes out."""
    from spade_deploy.serving.run import serve as run

    run(asked, place.runs, _Lines())
