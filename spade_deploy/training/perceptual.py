"""The perceptual loss: L1 between VGG features of the generated image and of the photo (Johnson et al., "Perceptual
Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016), with pix2pixHD's layers and weights.

The weights come from a file in torchvision's form: a state dict with `features.N.weight` and `.bias`; classifier
weights in it are ignored. Images in [-1, 1] are first normalised with ImageNet's mean and deviation, as those networks
were trained; some older code leaves this out, so losses are not comparable with theirs.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.errors import CheckpointError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
"""Of relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1."""

_BLOCK_CHANNELS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {"VGG16": (2, 2, 3, 3), "VGG19": (2, 2, 4, 4)}
"""Convolutions of the blocks before the fifth, of which only the first is needed."""
_HINT = "use the weights of vgg16 or vgg19 as torchvision publishes them (not the _bn variants)"


class VggFeatures(nn.Module):
    """The convolutions of VGG16 or VGG19 up to relu5_1, fixed.

    architecture: 'VGG16' or 'VGG19'. Keys are torchvision's.
    """

    def __init__(self, architecture: str) -> None:
        super().__init__()
        self.architecture = architecture
        self.features = nn.ModuleDict()
        self.taps: list[str] = []
        self.pools: list[str] = []
        index, width = 0, 3
        for block, channels in enumerate(_BLOCK_CHANNELS):
            self.taps.append(str(index))
            if block:
                self.pools.append(str(index))
            for _ in range((*_CONVOLUTIONS[architecture], 1)[block]):
                self.features[str(index)] = nn.Conv2d(width, channels, 3, padding=1)
                width = channels
                index += 2  # a ReLU follows each
            index += 1  # the pooling
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image: N x 3 x H x W RGB in [-1, 1], 16 pixels or more each side. Returns relu1_1..relu5_1."""
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        x = ((image + 1) / 2 - mean) / std
        outputs = []
        for name, convolution in self.features.items():
            if name in self.pools:
                x = functional.max_pool2d(x, 2)
            x = functional.relu(convolution(x))
            if name in self.taps:
                outputs.append(x)
        return outputs


class PerceptualLoss(nn.Module):
    """Weighted L1 of VGG features; the network is fixed, gradients flow to the generated image alone."""

    def __init__(self, features: VggFeatures) -> None:
        super().__init__()
        self.network = features.eval().requires_grad_(False)

    def forward(self, fake: Tensor, real: Tensor) -> Tensor:
        """fake, real: N x 3 x H x W RGB in [-1, 1]. Returns a scalar."""
        with torch.no_grad():
            targets = self.network(real)
        losses = [
            weight * functional.l1_loss(output, target)
            for weight, output, target in zip(LAYER_WEIGHTS, self.network(fake), targets, strict=True)
        ]
        return torch.stack(losses).sum()


def load_vgg(path: Path) -> VggFeatures:
    """The network in a .pth (loaded weights_only) or .safetensors file; which VGG it is follows from the keys.

    Raises CheckpointError: not readable, no VGG16 or VGG19, a key is missing or of another shape.
    """
    tensors = _read_tensors(path)
    architecture = _architecture(path, tensors)
    network = VggFeatures(architecture)
    wanted = network.state_dict()
    for key, own in wanted.items():
        if key not in tensors:
            raise CheckpointError(f"{path}: {key} is missing; {architecture} needs it", hint=_HINT)
        if tensors[key].shape != own.shape:
            raise CheckpointError(
                f"{path}: {key} has the shape {tuple(tensors[key].shape)}; {architecture} has {tuple(own.shape)}",
                hint=_HINT,
            )
    network.load_state_dict({key: tensors[key].float() for key in wanted})
    return network.eval().requires_grad_(False)


def _architecture(path: Path, tensors: dict[str, Tensor]) -> str:
    """The fourth block tells: VGG16 has a convolution at 17 where VGG19 has one at 16."""
    if not any(key.startswith("features.") for key in tensors):
        some = ", ".join(sorted(tensors)[:3]) or "none at all"
        raise CheckpointError(f"{path}: no key begins with 'features.'; its keys are {some}...", hint=_HINT)
    if "features.1.weight" in tensors:
        raise CheckpointError(f"{path}: features.1 has weights: this is a VGG with batch norm", hint=_HINT)
    if "features.16.weight" in tensors:
        return "VGG19"
    if "features.17.weight" in tensors:
        return "VGG16"
    raise CheckpointError(f"{path}: has neither features.16.weight (VGG19) nor features.17.weight (VGG16)", hint=_HINT)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"--perceptual-file {path}: is not a file", hint=_HINT)
    try:
        if path.suffix == ".safetensors":
            loaded = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # about how an old file was pickled
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on noise the unpickler raises nearly anything
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be read as weights ({first})", hint=_HINT) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path}: is not a state dict of tensors", hint=_HINT)
    return {str(key): value for key, value in loaded.items()}
