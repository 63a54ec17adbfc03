"""The perceptual loss: L1 between VGG features of the generated image and of the photo (Johnson et al., "Perceptual
Losses for Real-Time Style Transfer and Super-Resolution", ECCV 2016), with pix2pixHD's layers and weights.

The weights are torchvision's, which `fetch_vgg` downloads, or a file: a state dict with `features.N.weight` and `.bias`
(classifier weights in it are ignored), or the .npz of the network as it was first published (`_from_caffe`). Images in
[-1, 1] are first normalised with ImageNet's mean and deviation, as torchvision's networks were trained; some older code
leaves this out, so losses cannot be compared with those of that code.
"""

from __future__ import annotations

import socket
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.errors import CheckpointError, quoted, reason_of
from spade_deploy.files.reading import open_regular, sha256_of
from spade_deploy.runs.state_dicts import check_values
from spade_deploy.runs.tensors import require_finite
from spade_deploy.runs.weight_files import load_weights
from spade_deploy.settings import check_one_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LAYER_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
"""The weights of relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1."""

_BLOCK_CHANNELS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {"VGG16": (2, 2, 3, 3), "VGG19": (2, 2, 4, 4)}
"""How many convolutions the first four blocks have; of the fifth block only the first convolution is needed."""
_HINT = "use the weights of vgg16 or vgg19 as torchvision publishes them (not the _bn variants)"

CAFFE_MEAN_RGB = (123.68, 116.779, 103.939)
"""The mean that the original network subtracts from its input, which is BGR in 0..255."""


@dataclass(frozen=True)
class Published:
    """A weight file that torchvision publishes."""

    url: str
    """Where it can be downloaded."""

    sha256: str
    """The digest of the file."""

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


PUBLISHED = {
    "vgg16": Published(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "vgg19": Published(
        "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
        "dcbb9e9dad569fff7a846263a77324fc34978fea2bfb039c012d710e1776ae44",
    ),
}
"""The files that `fetch_vgg` knows, about 550 MB each."""
CONNECT_TIMEOUT_S = 30.0
"""How long a download waits for an answer of the server."""


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


def fetch_vgg(name: str, cache: Path | None = None) -> Path:
    """The path of torchvision's weights of 'vgg16' or 'vgg19'. The file is downloaded unless it exists.

    Its whole SHA-256 is checked each time. cache: the folder of the file; by default that of torch.hub
    (`$TORCH_HOME/hub/checkpoints`), which torchvision uses too.
    Raises ConfigError for another name, CheckpointError if the file cannot be downloaded or has another digest.
    """
    check_one_of("perceptual", name, PUBLISHED)
    published = PUBLISHED[name]
    folder = Path(torch.hub.get_dir()) / "checkpoints" if cache is None else cache
    path = folder / published.file_name
    by_hand = (
        f"download {published.url} on a machine that can, and put it at {path}, or anywhere with `perceptual_file`;"
        " `weight_perceptual` 0 trains without"
    )
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _connections_give_up():
                torch.hub.download_url_to_file(published.url, str(path), published.sha256, progress=sys.stderr.isatty())
        except RuntimeError as error:  # torch.hub raises it for a digest that differs
            raise CheckpointError(
                f"{published.url}: the downloaded file is not the published one ({reason_of(error)})", hint=by_hand
            ) from error
        except (OSError, ValueError) as error:  # no network, no such page, a full disk; ValueError: cut-off headers
            reason = reason_of(error).removeprefix("<urlopen error ").removesuffix(">")
            raise CheckpointError(
                f"{name}'s weights for the perceptual loss cannot be downloaded from {published.url} to {path}"
                f" ({reason})",
                hint=by_hand,
            ) from error
    try:
        found = sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})", hint=by_hand) from error
    if found != published.sha256:
        raise CheckpointError(
            f"{path}: its SHA-256 begins {found[:12]}, that of {name} as published {published.sha256[:12]}",
            hint=f"delete it: it is downloaded again; or {by_hand}",
        )
    return path


@contextmanager
def _connections_give_up() -> Iterator[None]:
    """A block in which connections have a time limit: torch.hub sets none, and some networks never answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def load_vgg(path: Path) -> VggFeatures:
    """The network in a file. The keys say which VGG it is.

    path: .pth (loaded weights_only) or .safetensors with torchvision's keys, or .npz with `conv1_1.w`, `conv1_1.b`, ...

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
                f"{path}: {key} has the shape {quoted(tuple(tensors[key].shape))};"
                f" {architecture} has {tuple(own.shape)}",
                hint=_HINT,
            )
    check_values({key: tensors[key] for key in wanted}, path)
    require_finite({key: tensors[key] for key in wanted}, path)
    network.load_state_dict({key: tensors[key].float() for key in wanted})
    return network.eval().requires_grad_(False)


def _architecture(path: Path, tensors: dict[str, Tensor]) -> str:
    """'VGG16' or 'VGG19', by the fourth block: VGG16 has a convolution at 17 where VGG19 has one at 16."""
    if not any(key.startswith("features.") for key in tensors):
        some = ", ".join(quoted(key) for key in sorted(tensors)[:3]) or "none at all"
        raise CheckpointError(f"{path}: no key begins with 'features.'; its keys are {some}...", hint=_HINT)
    if "features.1.weight" in tensors:
        raise CheckpointError(f"{path}: features.1 has weights: this is a VGG with batch norm", hint=_HINT)
    if "features.16.weight" in tensors:
        return "VGG19"
    if "features.17.weight" in tensors:
        return "VGG16"
    raise CheckpointError(f"{path}: has neither features.16.weight (VGG19) nor features.17.weight (VGG16)", hint=_HINT)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".npz":
        arrays = _read_arrays(path)
        check_values(arrays, path)
        return _from_caffe(path, arrays)
    loaded = load_weights(path, "vgg19 or vgg16 of torchvision's")
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"{path}: is not a state dict of tensors", hint=_HINT)
    return {str(key): value for key, value in loaded.items()}


def _read_arrays(path: Path) -> dict[str, Tensor]:
    try:
        with open_regular(path) as stream:
            with zipfile.ZipFile(stream) as archive:
                total = sum(member.file_size for member in archive.infolist())
            size = stream.seek(0, 2)
            if total > 4 * size + (1 << 20):  # weights hardly compress
                raise ValueError(f"its arrays are {total:,} bytes, the file {size:,}")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as arrays:
                return {key: torch.from_numpy(arrays[key]) for key in arrays if key.startswith("conv")}
    except Exception as error:  # zipfile and NumPy raise a dozen kinds for damaged bytes
        raise CheckpointError(f"{path}: cannot be read as weights ({reason_of(error)})", hint=_HINT) from error


def _from_caffe(path: Path, original: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published network's weights (OIHW, `convB_I.w` and `.b`) -> torchvision's keys and input.

    That network reads x = bgr - m, bgr in 0..255; this one t = (rgb - mu) / sigma, rgb in 0..1. With the channels of W
    put in RGB order, x = 255 rgb - m = 255 sigma t + (255 mu - m), which the first convolution takes up exactly:

        W'[:, c] = 255 sigma_c W[:, c]          b' = b + sum over c and taps of W[:, c] (255 mu_c - m_c)

    computed in float64. One difference is left, at the border: zero padding is x = 0 there and t = 0 here, which means
    x = 255 mu - m, or -0.005, -0.499 and -0.409 of 255 in red, green and blue.
    """
    blocks = {16: (2, 2, 3, 3, 1), 19: (2, 2, 4, 4, 1)}[19 if "conv3_4.w" in original else 16]
    converted, index = {}, 0
    for block, count in enumerate(blocks, start=1):
        for position in range(1, count + 1):
            name = f"conv{block}_{position}"
            missing = next((key for key in (f"{name}.w", f"{name}.b") if key not in original), None)
            if missing:
                raise CheckpointError(
                    f"{path}: {missing} is missing; VGG's convolutions are conv1_1.w, .b to conv5_1.w, .b", hint=_HINT
                )
            weight, bias = original[f"{name}.w"].double(), original[f"{name}.b"].double()
            is_first = name == "conv1_1"
            if is_first and weight.dim() == 4 and weight.shape[1] == 3 and bias.shape == weight.shape[:1]:
                weight, bias = _reads_normalised_rgb(weight, bias)
            converted[f"features.{index}.weight"] = weight.float()
            converted[f"features.{index}.bias"] = bias.float()
            index += 2
        index += 1
    return converted


def _reads_normalised_rgb(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    mu, sigma, mean = (torch.tensor(v, dtype=torch.float64) for v in (IMAGENET_MEAN, IMAGENET_STD, CAFFE_MEAN_RGB))
    weight = weight.flip(1)
    shift = torch.einsum("ocij,c->o", weight, 255 * mu - mean)
    return weight * (255 * sigma).view(1, 3, 1, 1), bias + shift
