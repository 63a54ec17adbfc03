"""How an export proceeds: checkpoint -> reference -> deploy model -> ONNX -> artifact folder."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spade_deploy.artifact import (
    BANK,
    ENCODER,
    ENCODER_ONNX,
    FEATURES,
    IMAGE,
    INSTANCE,
    LABEL,
    LOGITS,
    PIXELS,
    Graph,
    Manifest,
    Source,
    Z,
    graph_facts,
    graph_file,
    model_facts,
    one_by_one,
    write_golden,
    write_manifest,
    write_style_directions,
)
from spade_deploy.errors import ConfigError, ExportError
from spade_deploy.export.build import ExportedModel, build_model, require_kind
from spade_deploy.export.encoder import write_encoder
from spade_deploy.export.exact_lookup import exact_lookup
from spade_deploy.export.int8.request import Int8Request
from spade_deploy.export.int8.write import Int8Summary, write_int8_graphs
from spade_deploy.export.onnx_file import OPSET, write_onnx
from spade_deploy.export.precision import always_fp32, kept_units, measure_ranges
from spade_deploy.export.stress_maps import StressMap
from spade_deploy.export.style_directions import style_directions
from spade_deploy.metrics.differences import psnr_db
from spade_deploy.metrics.tolerances import FP32_FACTOR, is_undecided
from spade_deploy.networks.build import Encoder, Generator, build_generator
from spade_deploy.networks.sims import bank_of_generator, give_bank
from spade_deploy.networks.spade import make_segmap, to_pixels
from spade_deploy.progress import SILENT, Progress
from spade_deploy.retrieval.bank_file import write_bank
from spade_deploy.spec import GraphKind, Precision, RoundingError

Arrays = Mapping[str, NDArray[Any]]
VERSIONED_PACKAGES = ("torch", "onnx", "onnx-ir", "numpy")


@dataclass(frozen=True)
class ExportRequest:
    """Which graphs are exported of a generator, and with which inputs they are measured."""

    golden_inputs: Arrays
    """The graph's inputs by name, N of each. They become golden tensors, and half precision is measured on them."""

    source: Source
    """Where the generator comes from, for the manifest."""

    precisions: Sequence[Precision] = (Precision.FP32,)
    """The precisions of the graphs: fp32, fp16 or both. int8 graphs are asked for with `int8`."""

    kinds: Sequence[GraphKind] | None = None
    """Kinds of graphs; None makes all that the architecture has."""

    keep_fp32: Sequence[str] = ()
    """Units that stay float32 in half precision besides those whose values are too large, see `parse_kept`."""

    int8: Int8Request | None = None
    """Adds an int8 graph of each kind, made of the fp32 graphs."""

    encoder: Encoder | None = None
    """The generator's encoder of photos in eval mode. It is written beside the graphs, and the file is proved equal."""

    device: str = "cpu"
    """Where PyTorch runs the float64 reference and measures ranges, which takes a CPU the longest; 'cuda' is a GPU. The
    float32 reference always runs on the CPU, where no TensorFloat-32 can be."""

    def __post_init__(self) -> None:
        if not self.precisions or not set(self.precisions) <= {Precision.FP32, Precision.FP16}:
            named = ", ".join(self.precisions) or "none"
            raise ConfigError(f"`precisions`: {named} is not fp32, fp16 or both", hint="`int8` adds int8 graphs")
        if self.int8 is not None and Precision.FP32 not in self.precisions:
            raise ConfigError("`int8`: its graphs are made of the fp32 graphs, which `precisions` leaves out")


@dataclass(frozen=True)
class Exported:
    """What `export_artifact` made."""

    manifest: Manifest
    """The manifest, as it was written."""

    rounding: RoundingError
    """The rounding error of the PyTorch module itself in float32."""

    reference: dict[str, NDArray[Any]]
    """The untouched module's outputs for the golden inputs, see `run_reference`."""

    int8: Int8Summary | None = None
    """The facts about the int8 graphs; None if there are none."""

    stress: tuple[StressMap, ...] = ()
    """The maps with the largest activations that a search found; empty without a half-precision graph."""


def export_artifact(
    generator: Generator, folder: Path, request: ExportRequest, progress: Progress = SILENT
) -> Exported:
    """Write graphs, golden tensors and manifest into `folder`, an empty directory.

    generator: in eval mode; it is read, never changed.
    Raises ExportError, MissingDependencyError, ConfigError for a kind that the architecture does not have, and
    ValidationFailedError where the encoder's proof fails.
    """
    kinds = generator.spec.graph_kinds if request.kinds is None else request.kinds
    for kind in kinds:
        require_kind(generator.spec, kind)
    bank = bank_of_generator(generator)
    if generator.spec.has_bank and bank is None:
        raise ExportError("the generator has no memory bank, of which its canvases are made", hint="train it again")
    golden_inputs = dict(request.golden_inputs)
    progress.step("running the PyTorch reference in float32 and float64")
    reference = run_reference(generator, golden_inputs)
    bad = int((~np.isfinite(reference[LOGITS])).any(axis=(1, 2, 3)).sum())
    if bad:
        raise ExportError(
            f"the network itself gives NaN or infinity for {bad} of {len(reference[LOGITS])} golden label maps,"
            " in PyTorch and float32: there is nothing to export",
            hint="use an earlier checkpoint, or train again with lower learning rates",
        )
    rounding = rounding_error(generator, golden_inputs, reference[LOGITS], request.device)
    write_golden(folder, golden_inputs, reference)
    if bank is not None:
        write_bank(folder / BANK, bank)
    directions = style_directions(generator)
    if directions is not None:
        write_style_directions(folder, directions)
    versions = {name: version(name) for name in VERSIONED_PACKAGES}
    facts = model_facts(generator.spec, request.source, versions)
    encoder_graph = None
    if request.encoder is not None:
        progress.step("writing the encoder of photos, and proving it equal to the PyTorch module")
        encoder_graph = write_encoder(
            request.encoder, generator.spec, folder / ENCODER_ONNX, facts | graph_facts(ENCODER, Precision.FP32)
        )
    wide: dict[GraphKind, ExportedModel] = {}
    kept: tuple[str, ...] = ()
    stress: tuple[StressMap, ...] = ()
    if Precision.FP16 in request.precisions:
        progress.step("measuring the largest values on the golden inputs and on stress maps, for half precision")
        wide = {kind: build_model(generator, kind).to(request.device) for kind in kinds}
        measured = measure_ranges(wide, golden_inputs, progress)
        if Precision.FP32 not in request.precisions:
            wide.clear()
        kept, stress = kept_units(generator.spec, measured.largest, request.keep_fp32), (measured.hardest,)
    graphs = []
    for precision, kind in itertools.product(request.precisions, kinds):
        progress.step(f"recording and writing the {precision} {kind} graph")
        if precision is Precision.FP32 and kind in wide:
            model = wide.pop(kind).cpu()  # the model whose ranges were measured; it is not needed after this
        else:
            model = build_model(generator, kind, fp16=precision is Precision.FP16, keep_fp32=kept)
        file = graph_file(precision, kind)
        all_kept = (*always_fp32(generator.spec), *kept) if precision is Precision.FP16 else ()
        write_onnx(model, folder / file, facts | graph_facts(kind, precision, all_kept))
        graphs.append(Graph(file, precision, all_kept, OPSET, kind))
    summary = None
    if (int8 := request.int8) is not None:
        progress.step(f"making int8 graphs of at least {int8.min_psnr_db:g} dB, calibrated on {int8.described}")
        golden = (golden_inputs, reference[IMAGE])
        made, summary = write_int8_graphs(generator, folder, kinds, int8, golden, progress)
        graphs += made
    progress.step("hashing files and writing the manifest")
    manifest = write_manifest(
        folder,
        generator=generator.spec,
        graphs=tuple(graphs),
        source=request.source,
        versions=versions,
        rounding=rounding,
        encoder=encoder_graph,
    )
    return Exported(manifest, rounding, reference, summary, stress)


def run_reference(generator: Generator, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """The outputs of the untouched module for the graph's inputs.

    Returns `pixels` N x H x W x 3, `image` N x 3 x H x W, and `logits`, the image before tanh.
    """
    image, logits = _run(generator, inputs, torch.float32)
    return {PIXELS: to_pixels(image).numpy(), IMAGE: image.numpy(), LOGITS: logits.numpy()}


def rounding_error(
    generator: Generator, inputs: Arrays, logits: NDArray[np.float32], device: str = "cpu"
) -> RoundingError:
    """The float32 rounding error of the untouched module itself: its logits against the same weights in float64.

    device: where the float64 module runs, as PyTorch names it; float64 rounds so finely that any gives these figures.
    On a CPU modulations in float64 are looked up, see `exact_lookup.py`. Values of the image that rounding alone may
    carry across zero are left out of the image's figures.
    """
    wide = _in_float64(generator, device)
    exact = _run(wide, inputs, torch.float64, device)[1].numpy()
    error = np.abs(logits - exact)
    largest, mean = float(error.max()), float(error.mean())
    image_error = np.abs(np.tanh(logits.astype(np.float64)) - np.tanh(exact))
    decided = image_error[~is_undecided(exact, FP32_FACTOR * largest)]
    if decided.size == 0:
        decided = np.zeros(1)
    return RoundingError(float(decided.max()), float(decided.mean()), largest, mean)


def float32_psnr_db(generator: Generator, inputs: Arrays) -> float | None:
    """The PSNR of the untouched module's float32 image against the same weights in float64; None without an error."""
    image = _run(generator, inputs, torch.float32)[0]
    exact = _run(_in_float64(generator, "cpu"), inputs, torch.float64)[0]
    return psnr_db(float(((image - exact) ** 2).mean()))


def _in_float64(generator: Generator, device: str) -> Generator:
    wide = build_generator(generator.spec).double()
    wide.load_state_dict(generator.state_dict())
    give_bank(wide, bank_of_generator(generator))
    return wide.to(device).eval()


def _run(generator: Generator, inputs: Arrays, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """The module's own images, and its logits as a hook sees them, on the CPU. device: where the module is."""
    # One image at a time: a batch of full-size activations would not fit small machines.
    images: list[Tensor] = []
    logits: list[Tensor] = []
    hook = generator.conv_img.register_forward_hook(lambda _, __, output: logits.append(output.cpu()))
    try:
        with torch.inference_mode():
            for arrays in one_by_one(inputs):
                one = {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}
                segmap = make_segmap(one[LABEL], one.get(INSTANCE), generator.spec.labels).to(dtype)
                if FEATURES in one:
                    segmap = torch.cat([segmap, one[FEATURES].to(dtype)], dim=1)
                segmap = segmap.contiguous()  # else every layer copies it to pick its pixels
                given: list[Any] = [segmap, one[Z].to(dtype) if Z in one else None]
                if dtype is torch.float64 and device == "cpu":
                    tables = exact_lookup(generator.spec, one[LABEL], one.get(INSTANCE), segmap)
                    given += [] if tables is None else [tables]
                images.append(generator(*given).cpu())
    finally:
        hook.remove()
    return torch.cat(images), torch.cat(logits)
