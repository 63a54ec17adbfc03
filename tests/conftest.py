"""What several tests share: small generators with believable statistics, and the samples in ../shared."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from spade_deploy.files.user_cache import VARIABLE
from tests.support.commands import Mission, readme_blocks, spade
from tests.support.generators import build_generator
from tests.support.paths import SHARED
from tests.support.signals import usual_signals

__all__ = ["usual_signals"]


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """../shared; a test that uses it carries the marker `shared`."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the samples in ../shared are not here")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """The generators here are so small that a second thread costs more than it brings, and far more beside others."""
    if find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests compile is kept in a folder of their own, for the processes that they start, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def make_generator() -> Callable[..., Any]:
    """A factory of seeded generators in eval mode; see `build_generator`."""
    return build_generator


@pytest.fixture(scope="session")
def mission(tmp_path_factory: pytest.TempPathFactory) -> Mission:
    """The main job as the README has it; the training alone is cut short, to 4 steps."""
    folder = tmp_path_factory.mktemp("mission")
    commands = next(block for block in readme_blocks() if block[0].startswith("spade train"))
    said = []
    for command in commands:
        arguments = shlex.split(command)[1:] + (["--steps", "4"] if command == "spade train" else [])
        done = spade(*arguments, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
    return Mission(folder, tuple(commands), tuple(said))
