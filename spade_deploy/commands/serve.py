"""`spade serve`: serve artifacts over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spade_deploy.commands.config_file import ConfigCommand, ConfigFile, as_yaml
from spade_deploy.commands.console import note, print_settings, stderr
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

    return ServeRequest, ConfigFile, RunsFolder


@command("serve", panel=MAIN, requests=_requests, needs="serve", kind=ConfigCommand)
def serve(asked: ServeRequest, file: ConfigFile, place: RunsFolder) -> None:
    """Serve artifacts over HTTP: a label map goes in, a photo comes out."""
    if file.print_config:
        print_settings(as_yaml(serve.settings, asked))
        return
    from spade_deploy.serving.run import serve as run

    run(asked, place.runs, _Lines())
