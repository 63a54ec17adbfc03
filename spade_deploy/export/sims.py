"""The module that is recorded for the synthesis network of SIMS. The trained module stays untouched.

The canvas is an input of the graph: a runtime makes it of the artifact's memory bank before the graph runs. The rest is
as in `export/crn.py`: nothing folds, and layer norm is written out. Every unit and every named value has the name of
the trained layer that computes it.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional

from spade_deploy.export.crn import DeployLayerNorm, DeployRefinement
from spade_deploy.export.dense_model import DenseModel, dtype_of
from spade_deploy.export.fold import fold_conv
from spade_deploy.export.pix2pixhd import make_like
from spade_deploy.export.spade import make_conv
from spade_deploy.networks.crn import RefinementModule, doubled, module_widths, pyramid
from spade_deploy.networks.sims import EncoderLayer, SemiParametricGenerator, encoder_widths
from spade_deploy.networks.spade import LEAKY_SLOPE
from spade_deploy.retrieval.canvas import CANVAS_CHANNELS
from spade_deploy.spec import GeneratorSpec


class DeployEncoderLayer(nn.Module):
    """The module that is recorded for an `EncoderLayer`."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        self.conv = make_like(layer.conv, fold_conv(layer.conv), bias=False)
        self.norm = DeployLayerNorm(layer.norm)

    def forward(self, x: Tensor) -> Tensor:
        return functional.leaky_relu(self.norm(self.conv(x)), LEAKY_SLOPE)


class DeploySemiParametric(DenseModel):
    """The synthesis network of SIMS. Inputs, outputs, and what fp16, keep_fp32 and dtype mean: see `DenseModel`."""

    def __init__(
        self,
        generator: SemiParametricGenerator,
        *,
        fp16: bool = False,
        keep_fp32: Collection[str] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(generator.spec)
        self.bank = generator.bank
        for name in encoder_widths(generator.spec):
            layer = generator.get_submodule(name)
            assert isinstance(layer, EncoderLayer)
            self.add_module(name, DeployEncoderLayer(layer))
        for name in module_widths(generator.spec):
            module = generator.get_submodule(name)
            assert isinstance(module, RefinementModule)
            self.add_module(name, DeployRefinement(module))
        self.conv_img = make_conv(fold_conv(generator.conv_img))
        self.set_types(sims_units(generator.spec), fp16=fp16, keep_fp32=keep_fp32, dtype=dtype)

    def logits(self, label: Tensor, edges: Tensor | None, z: Tensor | None) -> Tensor:
        whole = self.segmap(1, label, edges)
        x, encoded = whole, []
        for name in encoder_widths(self.spec):
            unit = self.get_submodule(name)
            x = unit(x.to(dtype_of(unit)))
            encoded.append(x)
        seen = pyramid(whole[:, :-CANVAS_CHANNELS], self.spec.doublings)
        first, *others = module_widths(self.spec)
        x = self._refined(first, [seen.pop(), encoded.pop()])
        for name in others:
            # The features are doubled, then cast: `precision.py` watches a unit's inputs as they are cast.
            x = self._refined(name, [doubled(x), seen.pop(), encoded.pop()])
        logits: Tensor = self.conv_img(x.to(dtype_of(self.conv_img)))
        return logits

    def _refined(self, name: str, parts: list[Tensor]) -> Tensor:
        unit = self.get_submodule(name)
        dtype = dtype_of(unit)
        refined: Tensor = unit(torch.cat([part.to(dtype) for part in parts], dim=1))
        return refined


def sims_units(spec: GeneratorSpec) -> list[str]:
    """Every part that has a precision of its own, in the order they run."""
    return [*encoder_widths(spec), *module_widths(spec), "conv_img"]


def sims_stages(spec: GeneratorSpec) -> list[str]:
    """Values that the deploy model and the trained generator both compute, in the order they are computed."""
    stages = []
    for name in encoder_widths(spec):
        stages += [f"{name}.conv", f"{name}.norm", name]
    for name in module_widths(spec):
        stages += [*(f"{name}.{part}" for part in ("conv_0", "norm_0", "conv_1", "norm_1")), name]
    return [*stages, "conv_img"]
