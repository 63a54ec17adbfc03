"""The VGG loss: which network a file holds, what it reads, and the conversion of the original weights."""

import importlib.util
import pickle
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from spade_deploy.errors import CheckpointError
from spade_deploy.training.perceptual import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    LAYER_WEIGHTS,
    PerceptualLoss,
    VggFeatures,
    load_vgg,
)

ROOT = Path(__file__).resolve().parents[2]
NPZ = ROOT.parent / "shared" / "weights" / "vgg16_imagenet_fp16.npz"

# Indices of the convolutions in torchvision's `features`, up to relu5_1.
PUBLISHED = {
    "VGG16": [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24],
    "VGG19": [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28],
}


@pytest.fixture(scope="module")
def networks() -> dict[str, VggFeatures]:
    torch.manual_seed(0)
    return {name: VggFeatures(name).eval() for name in PUBLISHED}


@pytest.mark.parametrize("architecture", list(PUBLISHED))
def test_keys_are_torchvisions(networks: dict[str, VggFeatures], architecture: str) -> None:
    keys = {f"features.{index}.{part}" for index in PUBLISHED[architecture] for part in ("weight", "bias")}
    assert set(networks[architecture].state_dict()) == keys


@pytest.mark.parametrize("architecture", list(PUBLISHED))
def test_features_are_those_of_the_plain_sequence(networks: dict[str, VggFeatures], architecture: str) -> None:
    """Written again as torchvision lays it out: convolution, ReLU, and a pooling where an index is left out."""
    state = networks[architecture].state_dict()
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    x = ((image + 1) / 2 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    expected, previous = [], -2
    for index in PUBLISHED[architecture]:
        begins_block = index - previous != 2
        if begins_block:
            x = functional.max_pool2d(x, 2)
        x = functional.relu(
            functional.conv2d(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"], padding=1)
        )
        if begins_block or index == 0:
            expected.append(x)
        previous = index
    found = networks[architecture](image)
    assert [f.shape[1] for f in found] == [64, 128, 256, 512, 512]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("architecture", list(PUBLISHED))
def test_a_file_tells_which_network_it_is(networks: dict[str, VggFeatures], architecture: str, tmp_path: Path) -> None:
    state = {**networks[architecture].state_dict(), "classifier.0.weight": torch.zeros(2, 2)}
    torch.save(state, tmp_path / "vgg.pth")
    save_file(state, tmp_path / "vgg.safetensors")
    for name in ("vgg.pth", "vgg.safetensors"):
        loaded = load_vgg(tmp_path / name)
        assert loaded.architecture == architecture
        assert torch.equal(loaded.state_dict()["features.0.weight"], state["features.0.weight"])


def test_the_loss_weighs_the_layers_and_pulls_the_fake_alone(networks: dict[str, VggFeatures]) -> None:
    loss = PerceptualLoss(networks["VGG16"])
    fake = (torch.rand(1, 3, 16, 16) * 2 - 1).requires_grad_()
    real = (torch.rand(1, 3, 16, 16) * 2 - 1).requires_grad_()
    value = loss(fake, real)
    pairs = zip(LAYER_WEIGHTS, loss.network(fake), loss.network(real), strict=True)
    assert value.item() == pytest.approx(sum(w * (a - b).abs().mean().item() for w, a, b in pairs), rel=1e-5)
    value.backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
    assert real.grad is None
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    assert loss(real, real).item() == 0


def test_files_that_are_no_vgg(networks: dict[str, VggFeatures], tmp_path: Path) -> None:
    state = networks["VGG16"].state_dict()
    short = {key: value for key, value in state.items() if key != "features.24.bias"}
    cases = {
        "features.24.bias is missing": short,
        "features.0.weight has the shape": {**state, "features.0.weight": torch.zeros(64, 1, 3, 3)},
        "batch norm": {**state, "features.1.weight": torch.zeros(64)},
        "no key begins with 'features.'": {"conv1.weight": torch.zeros(1)},
        "neither features.16.weight": {"features.0.weight": torch.zeros(1)},
    }
    for message, wrong in cases.items():
        save_file(wrong, tmp_path / "wrong.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load_vgg(tmp_path / "wrong.safetensors")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a file"):
        load_vgg(tmp_path / "absent.pth")
    (tmp_path / "harmful.pth").write_bytes(pickle.dumps(print, protocol=2))
    (tmp_path / "noise.pth").write_bytes(b"noise")
    (tmp_path / "noise.safetensors").write_bytes(b"noise")
    (tmp_path / "empty.pth").write_bytes(b"")
    for name in ("harmful.pth", "noise.pth", "noise.safetensors", "empty.pth"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_vgg(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="state dict"):
        load_vgg(tmp_path / "list.pth")


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_vgg16_npz", ROOT / "scripts" / "convert_vgg16_npz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.shared
@pytest.mark.skipif(not NPZ.is_file(), reason="../shared/weights/vgg16_imagenet_fp16.npz is not here")
def test_the_converted_weights_compute_the_original_features(tmp_path: Path) -> None:
    convert = script()
    assert convert.main([str(NPZ), str(tmp_path / "vgg16.safetensors")]) == 0
    network = load_vgg(tmp_path / "vgg16.safetensors")
    assert network.architecture == "VGG16"
    with np.load(NPZ) as archive:
        original = {name: torch.from_numpy(archive[name].astype(np.float64)) for name in archive}
    torch.manual_seed(0)
    image = functional.interpolate(torch.rand(1, 3, 24, 24, dtype=torch.float64), size=96, mode="bilinear") * 2 - 1
    x = (image.flip(1) + 1) / 2 * 255 - torch.tensor([103.939, 116.779, 123.68], dtype=torch.float64).view(3, 1, 1)
    expected = []
    for name in convert.INDICES:
        if name.endswith("_1") and name != "conv1_1":
            x = functional.max_pool2d(x, 2)
        x = functional.relu(functional.conv2d(x, original[f"{name}.w"], original[f"{name}.b"], padding=1))
        if name.endswith("_1"):
            expected.append(x)
    found = network(image.float())

    def worst(a: torch.Tensor, b: torch.Tensor) -> float:
        return ((a - b).abs().max() / b.abs().max()).item()

    inner = [slice(1, -1), slice(1, -1)]
    first = (found[0][..., *inner], expected[0][..., *inner])
    # Inside, fp32 rounding alone: measured 2e-7 of the largest activation; RGB for BGR gives 0.9.
    assert worst(*first) < 1e-6
    swapped = network(image.float().flip(1))[0][..., *inner]
    assert worst(swapped, first[1]) > 0.01
    # With the border, where the padding differs by up to half a grey level: measured 3e-3 in relu1_1, 7e-4 after it.
    errors = [worst(a, b) for a, b in zip(found, expected, strict=True)]
    assert max(errors) < 0.01
    assert worst(found[0], expected[0]) > 1e-5, "the padding differs; the docstring of the script says so"


def test_the_script_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(1))
    assert script().main([str(tmp_path / "other.npz"), str(tmp_path / "out.safetensors")]) == 1
    assert "conv1_1.w is missing" in capsys.readouterr().err
    assert script().main([]) == 2
