"""More threads than cores only wait for each other: as many as there are cores are taken, and that is said."""

from pathlib import Path
from typing import Any

import pytest

from spade_deploy.engines.base import Backend
from spade_deploy.engines.open import open_runtime
from spade_deploy.engines.ort.session import SessionSetup
from spade_deploy.machine import cores
from tests.support.stand_in import stand_in_artifact


@pytest.mark.parametrize(("asked", "taken"), [(1, 1), (2, 2), (3, 2), (1000, 2), (10**30, 2)])
def test_no_more_than_there_are(
    asked: int, taken: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 2)
    assert cores.at_most_cores(asked, "threads") == taken
    told = f"`threads` {asked}: only 2 cores may be used here, so 2 are used"
    assert caplog.messages == ([told] if asked > 2 else [])


def test_a_runtime_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = []
    options = SessionSetup.options

    def seen(setup: SessionSetup, module: Any) -> Any:
        given.append(setup.threads)
        return options(setup, module)

    monkeypatch.setattr(SessionSetup, "options", seen)
    artifact = stand_in_artifact(tmp_path / "a")
    with open_runtime(artifact, backend=Backend.CPU, threads=1000):
        pass
    assert given == [cores.usable_cores()]
    assert caplog.messages[0].startswith("`threads` 1000: only ")
