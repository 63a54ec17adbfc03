"""What several tests share: small generators with believable statistics, and the samples in ../shared."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


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


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """For a test that interrupts itself or a child: signals mean what they mean to a program in the foreground.

    A background job of a script begins with SIGINT ignored, one under nohup with SIGHUP, and children inherit that.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
    numbers = [number for name in names if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def make_generator() -> Callable[..., Any]:
    """A factory of seeded generators in eval mode; see `build_generator`."""
    return build_generator


def build_generator(*, seed: int = 0, gain: float = 1.0, training_steps: int = 3, **spec_fields: Any) -> Any:
    """A small generator whose batch-norm statistics and spectral-norm vectors come from training-mode passes.

    spec_fields: of GeneratorSpec; the default is 8 base channels, 12 hidden, 7 labels with dontcare and edges, 64 px.
    """
    import torch

    from spade_deploy.spec import GeneratorSpec, LabelSpec
    from spade_deploy.training.networks import SpadeGenerator, initialize, make_segmap

    fields = {
        "labels": LabelSpec(7, has_dontcare=True, has_edges=True),
        "base_channels": 8,
        "hidden_channels": 12,
        "height": 64,
        "width": 64,
        **spec_fields,
    }
    spec = GeneratorSpec(**fields)
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        generator = SpadeGenerator(spec)
        initialize(generator, gain)
        # Biases of a trained model are not zero, and a fold that forgets one must be seen.
        for name, parameter in generator.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
        generator.train()
        with torch.no_grad():
            for _ in range(training_steps):
                label, instance, z = random_inputs(spec, 2)
                generator(make_segmap(label, instance, spec.labels), z)
        return generator.eval()
    finally:
        torch.random.set_rng_state(state)


def random_inputs(spec: Any, count: int, height: int | None = None, width: int | None = None) -> tuple[Any, Any, Any]:
    """Noise label maps, instance maps and styles: every pixel its own pattern, borders included."""
    import torch

    shape = (count, height or spec.height, width or spec.width)
    label = torch.randint(0, spec.labels.num_ids, shape, dtype=torch.int32)
    label = label.to(torch.uint8) if spec.labels.num_ids <= 256 else label
    instance = torch.randint(0, 3, shape, dtype=torch.int32)
    z = torch.randn(count, spec.z_dim) if spec.z_dim is not None else None
    return label, instance, z


def graph_inputs(spec: Any, label: Any, instance: Any, z: Any) -> list[Any]:
    """The tensors that the deploy model and the graph take, in their order."""
    return [label, *([instance] if spec.labels.has_edges else []), *([z] if spec.z_dim is not None else [])]


@dataclass(frozen=True)
class Mission:
    """The README's three commands, run in an empty folder through the console script; `said` is what each printed."""

    folder: Path
    commands: tuple[str, ...]
    said: tuple[str, ...]


def readme_blocks() -> list[list[str]]:
    """The commands of the README's shell blocks, without comments."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [[line.split("  #")[0].strip() for line in block.splitlines() if line.strip()] for block in blocks]


def spade(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the real console script of this environment."""
    script = Path(sys.executable).with_name("spade")
    environment = {**os.environ, "COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.run(
        [script, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, env=environment, check=False
    )


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
