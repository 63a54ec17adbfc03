"""The order of an export on one page: checkpoint -> reference -> deploy model -> ONNX -> artifact folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spade_deploy.artifact import (
    ENCODER_ONNX,
    IMAGE,
    INSTANCE,
    LABEL,
    LOGITS,
    PIXELS,
    Graph,
    Manifest,
    Source,
    Z,
    graph_file,
    one_by_one,
    write_golden,
    write_manifest,
)
from spade_deploy.errors import ExportError
from spade_deploy.export.build import build_model, require_kind
from spade_deploy.export.encoder import write_encoder
from spade_deploy.export.int8.write import Int8Request, Int8Summary, write_int8_graphs
from spade_deploy.export.onnx_file import OPSET, write_onnx
from spade_deploy.export.precision import always_fp32, kept_units, measure_ranges
from spade_deploy.export.stress_maps import StressMap
from spade_deploy.metrics.tolerances import FP32_FACTOR, is_undecided
from spade_deploy.networks.build import Generator, build_generator
from spade_deploy.networks.encoder import StyleEncoder
from spade_deploy.networks.spade import make_segmap, to_pixels
from spade_deploy.spec import GraphKind, Precision, RoundingError

Arrays = Mapping[str, NDArray[Any]]
VERSIONED_PACKAGES = ("torch", "onnx", "onnxscript", "numpy")


@dataclass(frozen=True)
class Exported:
    """What `export_artifact` made. int8: how the int8 graphs came about, None where there are none.

    stress: the maps of the largest activations that a search found; none without a half-precision graph.
    """

    manifest: Manifest
    rounding: RoundingError
    int8: Int8Summary | None = None
    stress: tuple[StressMap, ...] = ()


def export_artifact(
    generator: Generator,
    folder: Path,
    *,
    precisions: Sequence[Precision],
    kinds: Sequence[GraphKind] | None = None,
    golden_inputs: Arrays,
    source: Source,
    keep_fp32: Sequence[str] = (),
    int8: Int8Request | None = None,
    encoder: StyleEncoder | None = None,
    on_step: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Exported:
    """Write graphs, golden tensors and manifest into `folder`, an empty directory.

    generator: in eval mode; it is read, never changed. golden_inputs: the graph's inputs by name, N of each; they
    become the golden tensors, and the ranges of a half-precision graph are measured on them and on stress maps.
    kinds: of graphs; all that the architecture has if left out.
    keep_fp32: units that stay float32 in half precision beside those whose ranges ask for it, see `parse_kept`.
    int8: adds an int8 graph of each kind, made of the fp32 graphs. on_progress: what, done, in all.
    encoder: the generator's, in eval mode; it is written beside the graphs, and what is written is proved equal to it.
    Raises ExportError, MissingDependencyError, ConfigError for a kind that the architecture does not have, and
    ValidationFailedError where the encoder's proof fails.
    """
    kinds = generator.spec.graph_kinds if kinds is None else kinds
    for kind in kinds:
        require_kind(generator.spec, kind)
    on_step("running the PyTorch reference in float32 and float64")
    reference = run_reference(generator, golden_inputs)
    bad = int((~np.isfinite(reference[LOGITS])).any(axis=(1, 2, 3)).sum())
    if bad:
        raise ExportError(
            f"the network itself makes NaN or infinity of {bad} of {len(reference[LOGITS])} golden label maps,"
            " in PyTorch and float32: there is nothing to export",
            hint="use an earlier checkpoint, or train again with lower rates",
        )
    rounding = rounding_error(generator, golden_inputs, reference[LOGITS])
    write_golden(folder, dict(golden_inputs), reference)
    encoder_graph = None
    if encoder is not None:
        on_step("writing the style encoder, and proving it equal to the PyTorch module")
        encoder_graph = write_encoder(encoder, generator.spec, folder / ENCODER_ONNX)
    kept: tuple[str, ...] = ()
    stress: tuple[StressMap, ...] = ()
    if Precision.FP16 in precisions:
        on_step("measuring what half precision must hold, on the golden inputs and on stress maps")
        measured = measure_ranges(generator, kinds, dict(golden_inputs), on_progress)
        kept, stress = kept_units(generator.spec, measured.largest, keep_fp32), (measured.hardest,)
    graphs = []
    for precision, kind in itertools.product(precisions, kinds):
        on_step(f"tracing and writing the {precision} {kind} graph")
        model = build_model(generator, kind, fp16=precision is Precision.FP16, keep_fp32=kept)
        file = graph_file(precision, kind)
        write_onnx(model, folder / file)
        all_kept = (*always_fp32(generator.spec), *kept) if precision is Precision.FP16 else ()
        graphs.append(Graph(file, precision, all_kept, OPSET, kind))
    summary = None
    if int8 is not None:
        on_step(f"making int8 graphs of at least {int8.min_psnr_db:g} dB, calibrated on {int8.described}")
        golden = (dict(golden_inputs), reference[IMAGE])
        made, summary = write_int8_graphs(generator, folder, kinds, int8, golden, on_progress)
        graphs += made
    on_step("hashing files and writing the manifest")
    manifest = write_manifest(
        folder,
        generator=generator.spec,
        graphs=tuple(graphs),
        source=source,
        versions={name: version(name) for name in VERSIONED_PACKAGES},
        rounding=rounding,
        encoder=encoder_graph,
    )
    return Exported(manifest, rounding, summary, stress)


def run_reference(generator: Generator, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """What the untouched module makes of the graph's inputs.

    Returns `pixels` N x H x W x 3, `image` N x 3 x H x W, and `logits`, the image before tanh.
    """
    image, logits = _run(generator, inputs, torch.float32)
    return {PIXELS: to_pixels(image).numpy(), IMAGE: image.numpy(), LOGITS: logits.numpy()}


def rounding_error(generator: Generator, inputs: Arrays, logits: NDArray[np.float32]) -> RoundingError:
    """The float32 rounding error of the untouched module itself: its logits against the same weights in float64.

    Values of the image that rounding alone may carry across zero are left out of the image's figures.
    """
    wide = build_generator(generator.spec).double()
    wide.load_state_dict(generator.state_dict())
    wide.eval()
    exact = _run(wide, inputs, torch.float64)[1].numpy()
    error = np.abs(logits - exact)
    largest, mean = float(error.max()), float(error.mean())
    image_error = np.abs(np.tanh(logits.astype(np.float64)) - np.tanh(exact))
    decided = image_error[~is_undecided(exact, FP32_FACTOR * largest)]
    if decided.size == 0:
        decided = np.zeros(1)
    return RoundingError(float(decided.max()), float(decided.mean()), largest, mean)


def _run(generator: Generator, inputs: Arrays, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The module's own images, and its logits as a hook sees them."""
    # One image at a time: a batch of full-size activations would not fit small machines.
    images: list[Tensor] = []
    logits: list[Tensor] = []
    hook = generator.conv_img.register_forward_hook(lambda _, __, output: logits.append(output))
    try:
        with torch.inference_mode():
            for arrays in one_by_one(inputs):
                one = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
                segmap = make_segmap(one[LABEL], one.get(INSTANCE), generator.spec.labels).to(dtype)
                images.append(generator(segmap, one[Z].to(dtype) if Z in one else None))
    finally:
        hook.remove()
    return torch.cat(images), torch.cat(logits)
