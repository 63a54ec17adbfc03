"""The model that comes with the package: small, whole, and better on tiles it never saw than a short training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from spade_deploy.errors import CheckpointError, ConfigError
from spade_deploy.labels.earth import cut, earth_tiles
from spade_deploy.networks.build import Generator, build_generator
from spade_deploy.networks.spade import make_segmap
from spade_deploy.runs.shipped import SHIPPED, SHIPPED_FOLDER, shipped_generator, write_shipped
from spade_deploy.spec import GeneratorSpec, LabelSpec
from spade_deploy.training.presets import preset

SPEC = GeneratorSpec(LabelSpec(3), base_channels=2, hidden_channels=4, height=32, width=32)
LIMIT_BYTES = 12_000_000


def small() -> Generator:
    torch.manual_seed(0)
    generator = build_generator(SPEC)
    generator(torch.randn(4, 3, 64, 64))  # statistics that are not the initial ones
    return generator.eval()


def test_weights_are_rounded_to_half_precision_and_statistics_are_not(tmp_path: Path) -> None:
    generator = small()
    path = write_shipped(generator, "earth", "made by a test", tmp_path)
    kept = load_file(path)
    weights = {name for name, _ in generator.named_parameters()}
    assert {name for name, part in kept.items() if part.dtype is torch.float16} == weights
    found = shipped_generator("earth", tmp_path)
    assert not found.training
    assert found.spec == SPEC
    for name, part in generator.state_dict().items():
        expected = part.half().float() if name in weights else part
        assert torch.equal(found.state_dict()[name], expected)
    assert json.loads((tmp_path / "earth.json").read_text())["recipe"] == "made by a test"


def test_another_name_a_missing_file_and_another_content_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a shipped model; there is earth"):
        shipped_generator("mars")
    with pytest.raises(CheckpointError, match=r"earth\.json: cannot be read"):
        shipped_generator("earth", tmp_path)
    path = write_shipped(small(), "earth", "", tmp_path)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match=r"earth\.safetensors: its SHA-256"):
        shipped_generator("earth", tmp_path)


def test_what_is_shipped_fits_its_limit_and_the_preset() -> None:
    files = list(SHIPPED_FOLDER.glob("*.safetensors"))
    assert [path.stem for path in files] == list(SHIPPED)
    assert sum(path.stat().st_size for path in files) <= LIMIT_BYTES
    assert shipped_generator().spec == preset("earth").generator


def test_the_shipped_model_has_the_colours_and_the_detail_of_tiles_that_it_never_saw() -> None:
    generator = shipped_generator()
    tiles = earth_tiles("test")[::10]
    pairs = [cut(tile) for tile in tiles]
    label = torch.from_numpy(np.stack([ids for ids, _ in pairs]))
    real = torch.from_numpy(np.stack([photo for _, photo in pairs])).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        image = generator(make_segmap(label, None, generator.spec.labels))
    grey = (real - real.mean()).abs().mean()
    assert (image - real).abs().mean() < 0.6 * grey  # measured: 0.53
    assert 0.5 < roughness(image) / roughness(real) < 1.5  # measured: 0.68, of 240 steps 0.35


def roughness(image: torch.Tensor) -> float:
    """The mean difference of neighbouring pixels."""
    return float((image[:, :, :, 1:] - image[:, :, :, :-1]).abs().mean())
