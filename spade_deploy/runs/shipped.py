"""The trained generator that comes with the package: Earth at 128 x 128, its weights in half precision.

Its recipe, figures and pictures are in docs/models/earth.md. Weights are float16 in the file and float32 in the module;
batch-norm statistics and spectral norm's u and v are float32 in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spade_deploy.errors import CheckpointError, ConfigError, reason_of
from spade_deploy.fields import Sha256, from_json, to_json
from spade_deploy.files.atomic import write_json
from spade_deploy.files.reading import read_json, sha256_of
from spade_deploy.networks.build import Generator, build_generator
from spade_deploy.runs.checkpoint import Imported, Settings, save_checkpoint
from spade_deploy.runs.layout import SHIPPED
from spade_deploy.runs.tensors import check_tensors, load_tensors, save_tensors
from spade_deploy.spec import GeneratorSpec

SHIPPED_FOLDER = Path(__file__).parents[1] / "data" / "models"
_HINT = "the installation is damaged: install spade-deploy again"


@dataclass(frozen=True)
class ShippedFacts:
    """The content of the JSON file beside the weights."""

    generator: GeneratorSpec
    """How the generator is built."""

    sha256: Sha256
    """The SHA-256 of the weights' file."""

    recipe: str
    """How it was trained, in one sentence."""


def shipped_facts(name: str, folder: Path = SHIPPED_FOLDER) -> ShippedFacts:
    """How a shipped generator is built, and the digest of its weights. Raises what `shipped_generator` does."""
    if name not in SHIPPED:
        raise ConfigError(f"{name!r} is not a shipped model; there is {', '.join(SHIPPED)}")
    facts = folder / f"{name}.json"
    try:
        return from_json(ShippedFacts, read_json(facts))
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{facts}: cannot be read ({reason_of(error)})", hint=_HINT) from error


def shipped_generator(name: str = "earth", folder: Path = SHIPPED_FOLDER) -> Generator:
    """A shipped generator on the CPU, float32, in eval mode.

    Raises ConfigError for a name that is not shipped, CheckpointError where its files are missing or damaged.
    """
    shipped = shipped_facts(name, folder)
    tensors = {
        key: _widened(part) for key, part in load_tensors(folder / f"{name}.safetensors", shipped.sha256).items()
    }
    module = build_generator(shipped.generator)
    check_tensors(module.state_dict(), tensors, folder / f"{name}.json")
    module.load_state_dict(tensors)
    return module.eval()


def save_shipped(checkpoint: Path, setup: Settings, name: str = "earth") -> None:
    """Write a shipped generator as an imported checkpoint at step 0. Raises what `shipped_generator` does, OSError."""
    origin = Imported(f"{name}, shipped")
    save_checkpoint(checkpoint, shipped_generator(name), step=0, origin="import", imported=origin, setup=setup)


def write_shipped(generator: Generator, name: str, recipe: str, folder: Path) -> Path:
    """Write a generator as the package ships it; returns the file of its weights. Raises OSError.

    recipe: one sentence on how it was trained. The statistics stay float32: a variance may be below what half
    precision can tell from zero.
    """
    weights = {key for key, _ in generator.named_parameters()}
    tensors = {key: part.half() if key in weights else part for key, part in generator.state_dict().items()}
    path = folder / f"{name}.safetensors"
    save_tensors(path, tensors)
    write_json(folder / f"{name}.json", to_json(ShippedFacts(generator.spec, sha256_of(path), recipe)))
    return path


def _widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype is torch.float16 else tensor
