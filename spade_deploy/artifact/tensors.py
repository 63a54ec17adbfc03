"""The graph's inputs and outputs: names, types and shapes, which follow from the generator spec alone.

They are the same for every precision and every runtime; any ONNX client can rely on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.spec import FEATURE_CHANNELS, UNKNOWN_VALUE, GeneratorSpec

LABEL, INSTANCE, POSITION, CANVAS, FEATURES, Z = "label", "instance", "position", "canvas", "features", "z"
PIXELS, IMAGE = "pixels", "image"
LOGITS = "logits"
PHOTO, MU, LOGVAR = "photo", "mu", "logvar"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a graph."""

    name: str
    """Its name in every graph and every runtime."""
    dtype: str
    """The type of its numbers, as NumPy and PyTorch call it."""
    shape: tuple[int | str, ...]
    """Its sizes. A letter stands for a size that is not fixed; the same letter stands for the same number."""
    meaning: str
    """What it holds, for people."""


def input_tensors(spec: GeneratorSpec) -> tuple[TensorInfo, ...]:
    """The inputs of the graph, in order."""
    size: tuple[int | str, ...] = ("H", "W") if spec.is_dynamic else (spec.height, spec.width)
    tensors = [TensorInfo(LABEL, spec.labels.id_type, ("N", *size), "one class id a pixel")]
    if spec.labels.has_edges:
        tensors.append(TensorInfo(INSTANCE, "int32", ("N", *size), "one object id a pixel, of which edges are made"))
    if spec.has_features:
        meaning = "instance features: a photo's, each the mean over its instance, -1..1; zeros without a photo"
        tensors.append(TensorInfo(FEATURES, "float32", ("N", FEATURE_CHANNELS, *size), meaning))
    if spec.z_dim is not None:
        tensors.append(TensorInfo(Z, "float32", ("N", spec.z_dim), style_meaning(spec)))
    return tuple(tensors)


def graph_tensors(spec: GeneratorSpec) -> tuple[TensorInfo, ...]:
    """The inputs of a dense graph itself, in order: those of a caller, and what is made of them before the graph runs.

    It is the position of each pixel in its region, where a model sees it (`lookup/regions.py`), and the canvas of a
    memory bank, where a model completes one (`retrieval/canvas.py`).
    """
    tensors = list(input_tensors(spec))
    count, *size = tensors[0].shape
    last = len(tensors) - int(spec.z_dim is not None)
    if spec.has_positions:
        position = TensorInfo(POSITION, "float32", (count, 2, *size), "position of each pixel in its region, -1..1")
        tensors.insert(last, position)
    if spec.has_bank:
        meaning = "patches of the memory bank: RGB in -1..1, 0 in holes; then 1 in holes, else 0"
        tensors.insert(last, TensorInfo(CANVAS, "float32", (count, 4, *size), meaning))
    return tuple(tensors)


def style_meaning(spec: GeneratorSpec) -> str:
    """What the style vector holds, for people."""
    return "noise: standard normal" if spec.noise_channels else "style: zeros, or standard normal"


def default_style(spec: GeneratorSpec, count: int = 1) -> NDArray[np.float32] | None:
    """The style of `count` images where none is asked for, count x z_dim; None for a model without one.

    It is the mean style, zeros. The noise of OASIS has no mean that a network was trained on: it is that of seed 0, the
    same for every image.
    """
    if spec.z_dim is None:
        return None
    if not spec.noise_channels:
        return np.zeros((count, spec.z_dim), np.float32)
    return np.random.default_rng(0).standard_normal((1, spec.z_dim), np.float32).repeat(count, axis=0)


def output_tensors(spec: GeneratorSpec) -> tuple[TensorInfo, ...]:
    """The outputs of the graph, in order; they are the same for every precision."""
    size: tuple[int | str, ...] = ("H", "W") if spec.is_dynamic else (spec.height, spec.width)
    return (
        TensorInfo(PIXELS, "uint8", ("N", *size, 3), "RGB: (image + 1) / 2 * 255, clipped to 0..255, truncated"),
        TensorInfo(IMAGE, "float32", ("N", 3, *size), "RGB in -1..1"),
    )


def golden_tensors(spec: GeneratorSpec) -> tuple[TensorInfo, ...]:
    """The outputs of the reference: those of the graph, and the values before tanh, which no graph returns."""
    pixels, image = output_tensors(spec)
    return pixels, image, TensorInfo(LOGITS, "float32", image.shape, "the image before tanh")


def encoder_tensors(spec: GeneratorSpec) -> tuple[tuple[TensorInfo, ...], tuple[TensorInfo, ...]]:
    """The inputs and the outputs of the encoder's graph. The spec must have a style vector, or instance features.

    A style encoder sees photos of one size, and the encoder of instance features those of any that the generator runs.
    """
    if spec.has_features:
        photo = TensorInfo(PHOTO, "uint8", ("N", "H", "W", 3), "RGB, the whole photo resized with bicubic")
        meaning = "features of each pixel, -1..1; the generator is given their mean over each instance"
        return (photo,), (TensorInfo(FEATURES, "float32", ("N", FEATURE_CHANNELS, "H", "W"), meaning),)
    assert spec.z_dim is not None
    style = ("N", spec.z_dim)
    return (
        (TensorInfo(PHOTO, "uint8", ("N", spec.height, spec.width, 3), "RGB, the whole photo resized with bicubic"),),
        (
            TensorInfo(MU, "float32", style, "the mean of the photo's style: the z that stands for the photo"),
            TensorInfo(LOGVAR, "float32", style, "the logarithm of its variance: z = mu + exp(logvar / 2) noise"),
        ),
    )


def input_rule(spec: GeneratorSpec) -> dict[str, Any]:
    """How a label file becomes the graph's input: each step as data and as one sentence."""
    labels = spec.labels
    rule: dict[str, Any] = {
        "resize": {
            "method": "nearest",
            "height": spec.height,
            "width": spec.width,
            "sentence": f"Label and instance files are resized to {spec.height} x {spec.width} with nearest neighbour,"
            " as in training.",
        },
        "size": {
            "dynamic": spec.is_dynamic,
            "multiple_of": spec.stride,
            "sentence": f"Any height and width that are {spec.side_rule.replace('multiple', 'multiples')} run."
            if spec.is_dynamic
            else f"Only {spec.height} x {spec.width} runs: the style vector's first layer fixes the size.",
        },
        "ids": {
            "dtype": spec.labels.id_type,
            "minimum": 0,
            "maximum": labels.num_ids - 1,
            "sentence": f"Ids are the file's values unchanged, 0..{labels.num_ids - 1};"
            " one-hot channels are made inside the graph.",
        },
    }
    if spec.has_positions:
        rule["positions"] = {
            "input": POSITION,
            "sentence": "Engines make this input of a dense graph from the label map: for each pixel the row and the"
            " column from the centre of its region of one class, 8-connected, divided by the largest in the region"
            " plus 1e-5; zero for class 0.",
        }
    if spec.has_bank:
        rule["canvas"] = {
            "input": CANVAS,
            "sentence": "Engines make this input of the graph from the label map and the memory bank, bank.npz: for"
            " each region of a class the most similar segment of a training photo, scaled to the region's box. Where"
            " no patch lies, and beside borders of classes, the colours are zero and the last channel is one.",
        }
    if labels.num_labels <= UNKNOWN_VALUE:
        rule["unknown"] = {
            "file_value": UNKNOWN_VALUE,
            "id": labels.unknown_id,
            "sentence": f"A file's {UNKNOWN_VALUE} means unknown and becomes id {labels.unknown_id}."
            if labels.has_dontcare
            else f"A file's {UNKNOWN_VALUE} is refused: the model knows no unknown pixels.",
        }
    if labels.ignore_id is not None and labels.ignore_id != labels.unknown_id:
        rule["ignored"] = {
            "file_value": labels.ignore_id,
            "id": labels.unknown_id,
            "sentence": f"A file's {labels.ignore_id} means unknown, too, and becomes id {labels.unknown_id}.",
        }
    if labels.has_edges:
        rule["edges"] = {
            "input": INSTANCE,
            "neighbours": 4,
            "sentence": "The graph marks a pixel as edge where a 4-neighbour has another instance id;"
            " a constant instance map leaves the edge channel empty.",
        }
    if spec.has_features:
        rule["features"] = {
            "input": FEATURES,
            "sentence": "The encoder's features of a photo of the same size, each averaged over its instance: over all"
            " pixels of one id of the instance map, or of one class where there is no instance map. Zeros without a"
            " photo.",
        }
    if spec.z_dim is not None:
        rule["style"] = {
            "input": Z,
            "length": spec.z_dim,
            "sentence": "The noise is a standard normal vector, the same at every pixel; another one is another image."
            if spec.noise_channels
            else "The style is a standard normal vector; zeros are the mean style.",
        }
    return rule


def mismatch(tensors: tuple[TensorInfo, ...], arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """What is wrong with the names, types or shapes of `arrays`, beginning with the tensor's name, or None."""
    expected = ", ".join(tensor.name for tensor in tensors)
    for name in arrays:
        if name not in (tensor.name for tensor in tensors):
            return f"{name}: unknown tensor; expected are {expected}"
    sizes: dict[str, tuple[int, str]] = {}
    for tensor in tensors:
        array = arrays.get(tensor.name)
        if array is None:
            return f"{tensor.name}: missing; expected are {expected}"
        if array.dtype != np.dtype(tensor.dtype):
            return f"{tensor.name}: type {array.dtype}, expected {tensor.dtype}"
        shape = " x ".join(str(part) for part in tensor.shape)
        found = " x ".join(str(part) for part in array.shape) or "scalar"
        if array.ndim != len(tensor.shape):
            return f"{tensor.name}: shape {found}, expected {shape}"
        for axis, (size, dimension) in enumerate(zip(array.shape, tensor.shape, strict=True)):
            if isinstance(dimension, int):
                if size != dimension:
                    return f"{tensor.name}: shape {found}, expected {shape} (axis {axis} is {size}, not {dimension})"
            elif size < 1:
                return f"{tensor.name}: shape {found} is empty"
            else:
                bound, first = sizes.setdefault(dimension, (size, tensor.name))
                if bound != size:
                    return f"{tensor.name}: shape {found}: {dimension} is {size}, but {bound} in {first}"
    return None


def one_by_one(arrays: Mapping[str, NDArray[Any]]) -> Iterator[Arrays]:
    """Split a batch: for each of its N images, the tensors by name with N = 1."""
    for index in range(len(next(iter(arrays.values())))):
        yield {name: array[index : index + 1] for name, array in arrays.items()}


def joined(parts: Sequence[Mapping[str, NDArray[Any]]]) -> Arrays:
    """Tensors by name of several batches of one size -> those of one batch, in order: the way back of `one_by_one`."""
    if len(parts) == 1:
        return dict(parts[0])
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
