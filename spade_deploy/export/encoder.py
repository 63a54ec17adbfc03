"""The encoder of photos as an ONNX file, proved equal to the PyTorch module before anything else may use it.

It is the style encoder of a VAE, or that of pix2pixHD's instance features (`instance_encoder.py`). Of the former, the
spectral norm is folded into the convolutions (`fold.fold_conv`); the instance norm stays, since it depends on the
photo, and is written out (`exact_norm.py`): with ONNX Runtime's own the style had ten times the rounding error. The
graph also scales the pixels and resizes them to the encoder's own size. It runs once for each photo, and in
float32 alone: half precision would save milliseconds and cost the style's accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.artifact import ENCODER, PHOTO, EncoderGraph, description, encoder_tensors
from spade_deploy.engines.ort.session import INSTALL, load_onnxruntime, open_session
from spade_deploy.errors import ExportError, ValidationFailedError, reason_of
from spade_deploy.export.dense_model import instance_norm
from spade_deploy.export.fold import fold_conv
from spade_deploy.export.instance_encoder import DeployInstanceEncoder, to_image
from spade_deploy.export.onnx_file import OPSET, describe, open_sizes
from spade_deploy.export.onnx_recorder import GraphInput, Recorder
from spade_deploy.labels.files import colorize, synthetic_label_maps
from spade_deploy.networks.build import Encoder, build_encoder
from spade_deploy.networks.encoder import LAYERS, PHOTO_SIZE, StyleEncoder
from spade_deploy.networks.instance_encoder import InstanceEncoder
from spade_deploy.networks.spade import LEAKY_SLOPE
from spade_deploy.spec import GeneratorSpec, LabelSpec

ERROR_FACTOR = 4.0
ERROR_FLOOR = 5e-7
"""An exported encoder may differ by ERROR_FACTOR times the module's own rounding error plus ERROR_FLOOR times the
largest output, which is a few units in the last place. The worst of 19 encoders, with 2 to 64 base channels and weights
of two sizes, took 0.36 of what is allowed."""


class DeployEncoder(nn.Module):
    """The module that is recorded: pixels in, (mu, logvar) out. Raises ExportError for a module in train mode.

    height, width: the size of the photos.
    """

    def __init__(self, encoder: StyleEncoder, height: int, width: int) -> None:
        super().__init__()
        self.rows, self.columns = _Resized(2, height, PHOTO_SIZE), _Resized(3, width, PHOTO_SIZE)
        self.convolutions = nn.ModuleList()
        for name in LAYERS:
            trained, _ = encoder.get_submodule(name).children()
            weight = fold_conv(trained).weight.float()
            folded = nn.Conv2d(weight.shape[1], weight.shape[0], 3, stride=2, padding=1, bias=False)
            folded.weight = nn.Parameter(weight, requires_grad=False)
            self.convolutions.append(folded)
        self.fc_mu, self.fc_var = encoder.fc_mu, encoder.fc_var

    def forward(self, photo: Tensor) -> tuple[Tensor, Tensor]:
        """photo: N x H x W x 3 uint8 RGB."""
        x = self.rows(self.columns(to_image(photo)))
        for convolution in self.convolutions:
            x = functional.leaky_relu(instance_norm(convolution(x)), LEAKY_SLOPE)
        x = x.flatten(1)
        return self.fc_mu(x), self.fc_var(x)


class _Resized(nn.Module):
    """One axis of `size` values resized to `wanted` values, as PyTorch's bilinear interpolation does.

    A value is (1 - share) times one neighbour plus share times the next; both are picked at places that are known
    here. ONNX's Resize computes the places anew, from a scale that is rounded: for photos of 320 x 448 pixels the style
    then had eight times the error that rounding explains.
    """

    lower: Tensor
    upper: Tensor
    share: Tensor

    def __init__(self, axis: int, size: int, wanted: int) -> None:
        super().__init__()
        self.axis, self.is_needed = axis, size != wanted
        place = _places(size, wanted)
        lower = place.long().clamp(max=size - 1)
        shape = [-1 if each == axis else 1 for each in range(4)]
        self.register_buffer("lower", lower, persistent=False)
        self.register_buffer("upper", (lower + 1).clamp(max=size - 1), persistent=False)
        self.register_buffer("share", (place - lower).float().view(shape), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_needed:
            return x
        lower, upper = (x.index_select(self.axis, places) for places in (self.lower, self.upper))
        return lower * (1 - self.share) + upper * self.share


def _places(size: int, wanted: int) -> Tensor:
    """Where each of the `wanted` values lies among the `size` values, whose centres are 0, 1, 2, ...; float64."""
    return ((torch.arange(wanted, dtype=torch.float64) + 0.5) * size / wanted - 0.5).clamp(min=0)


def write_encoder(
    encoder: Encoder, spec: GeneratorSpec, path: Path, facts: Mapping[str, str] | None = None
) -> EncoderGraph:
    """Write `encoder`, which must be in eval mode and is not changed, and prove the file equal to it.

    spec: that of its generator. facts: the file's metadata. Raises ExportError, MissingDependencyError without ONNX
    Runtime, and ValidationFailedError if its outputs differ by more than rounding.
    """
    deployed: nn.Module
    if isinstance(encoder, InstanceEncoder):
        deployed = DeployInstanceEncoder(encoder)
    else:
        deployed = DeployEncoder(encoder, spec.height, spec.width)
    _write_onnx(deployed, spec, path, facts or {})
    return prove_encoder(encoder, spec, path)


def prove_encoder(encoder: Encoder, spec: GeneratorSpec, path: Path) -> EncoderGraph:
    """Run the file and the untouched module on the same photos, in a batch and one alone. Raises as `write_encoder`.

    They may differ by a small multiple of the module's own rounding error (float32 against float64), so that the limit
    fits the weights, and by a small share of the largest output.
    """
    photos = proof_photos(spec)
    expected, exact = (_run_module(encoder, spec, photos, kind) for kind in (torch.float32, torch.float64))
    if not np.isfinite(exact).all():
        raise ExportError(
            f"the {_named(spec)} returns values that are not finite",
            hint="the training diverged: export an earlier checkpoint",
        )
    rounding, scale = float(np.abs(expected - exact).max()), float(np.abs(exact).max())
    tolerance = ERROR_FACTOR * rounding + ERROR_FLOOR * scale
    session = _session(path, spec)
    together = np.stack(session.run(None, {PHOTO: photos}))
    alone = np.stack(session.run(None, {PHOTO: photos[:1]}))
    error = max(float(np.abs(together - expected).max()), float(np.abs(alone - expected[:, :1]).max()))
    if not error <= tolerance:
        raise ValidationFailedError(
            f"{path.name} does not equal the trained {_named(spec)}: outputs differ by {error:.3g} of"
            f" {scale:.3g}; rounding explains {tolerance:.3g}",
            hint="no artifact was written; please report this with the versions of torch, onnx and onnxruntime",
        )
    return EncoderGraph(path.name, OPSET, error, tolerance)


def proof_photos(spec: GeneratorSpec) -> NDArray[np.uint8]:
    """Three photos of the model's size: flat regions, their smooth shading, and noise. N x H x W x 3."""
    labels = LabelSpec(12)
    regions = colorize(synthetic_label_maps(labels, spec.height, spec.width, 1, seed=0)[0], labels)
    ramp = np.linspace(0.2, 1, spec.width, dtype=np.float32)[None, None, :, None]
    noise = np.random.default_rng(0).integers(0, 256, regions.shape, dtype=np.uint8)
    return np.concatenate([regions, (regions * ramp).astype(np.uint8), noise])


def _run_module(encoder: Encoder, spec: GeneratorSpec, photos: NDArray[np.uint8], dtype: torch.dtype) -> NDArray[Any]:
    """The outputs stacked: (mu, logvar), 2 x N x z_dim, or the features alone, 1 x N x C x H x W."""
    module = encoder
    if dtype is torch.float64:
        module = build_encoder(spec, encoder.state_dict()).double()
        module.load_state_dict(encoder.state_dict())
        module.eval()
    each: list[Tensor] = []
    with torch.inference_mode():
        for photo in photos:  # three large ones at once would not fit small machines
            found = module(torch.from_numpy(photo[None]).permute(0, 3, 1, 2).to(dtype) / 127.5 - 1)
            each.append(torch.stack(found if isinstance(found, tuple) else (found,)))
    return torch.cat(each, dim=1).numpy()


def _write_onnx(model: nn.Module, spec: GeneratorSpec, path: Path, facts: Mapping[str, str]) -> None:
    inputs, outputs = encoder_tensors(spec)
    given = [GraphInput(tensor.name, getattr(torch, tensor.dtype), open_sizes(spec, tensor)) for tensor in inputs]
    wanted = [(tensor.name, open_sizes(spec, tensor)) for tensor in outputs]
    onnx_model = Recorder(model.eval(), OPSET).record(given, wanted, [])
    describe(onnx_model, (*inputs, *outputs), description(spec, ENCODER), facts)
    ir.save(onnx_model, path)


def _session(path: Path, spec: GeneratorSpec) -> Any:
    load_onnxruntime(f"the {_named(spec)} is proved in ONNX Runtime, which", hint=INSTALL)
    return open_session(
        path,
        failed=lambda error: ExportError(f"{path}: ONNX Runtime cannot load the {_named(spec)}: {reason_of(error)}"),
    )


def _named(spec: GeneratorSpec) -> str:
    return "encoder of instance features" if spec.has_features else "style encoder"
