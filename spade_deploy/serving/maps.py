"""The bytes and JSON of a request -> the inputs of one image. Limits are checked before anything is decoded.

A label map comes as the bytes of a PNG (or BMP), or as run lengths. No path and no address of a request is followed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import FEATURES, INSTANCE, LABEL, Arrays, Z, region_means, with_features
from spade_deploy.errors import ConfigError, ImageTooLargeError, LabelMapError, quoted
from spade_deploy.images.image_file import ImageBytes, Size
from spade_deploy.inference.size import checked_size
from spade_deploy.inference.style import moved_style, photo_features, style_vector
from spade_deploy.labels.files import label_dtype, labels_from_values, read_instance_map, read_label_map, resize_nearest
from spade_deploy.serving.models import ServedModel
from spade_deploy.serving.run_lengths import RunLengths, is_int, run_lengths
from spade_deploy.spec import parse_size

FILES = frozenset({"label", "instance", "style_photo"})
"""The fields of a request that hold images."""
FIELDS = FILES | {"model", "seed", "style", "directions", "size", "format", "quality"}
"""All fields of a request."""


MapSource = ImageBytes | RunLengths


@dataclass(frozen=True)
class Asked:
    """What one request asks for, before the model has seen it."""

    label: MapSource
    """The label map."""
    instance: MapSource | None = None
    """The instance map; for a model with edges."""
    seed: int | None = None
    """Of a random style."""
    style: tuple[float, ...] | None = None
    """The style vector itself."""
    photo: ImageBytes | None = None
    """The photo whose style, or instance features, are taken."""
    directions: tuple[float, ...] | None = None
    """Steps along the main directions of the model's styles, from the style that the other fields say."""
    size: Size | None = None
    """Height and width of the result; the model's own for None."""
    keep_size: bool = False
    """Run at the label map's own size."""


@dataclass(frozen=True)
class Maps:
    """The maps of one request, decoded and checked, at their own size. They are never written to."""

    label: NDArray[Any]
    """H x W ids."""
    instance: NDArray[np.int32] | None = None
    """H x W object ids; None where the request has none."""

    @property
    def num_bytes(self) -> int:
        """What they take in memory."""
        return self.label.nbytes + (0 if self.instance is None else self.instance.nbytes)


def inputs_of(model: ServedModel, asked: Asked, most_pixels: int) -> Arrays:
    """The inputs of one image. Raises LabelMapError for a map that cannot be read, ConfigError for what the model has
    no use for."""
    return inputs_of_maps(model, maps_of(model, asked, most_pixels), asked, most_pixels)


def maps_of(model: ServedModel, asked: Asked, most_pixels: int) -> Maps:
    """Decode the maps of a request. Raises as `inputs_of` does."""
    label = label_values(model, asked.label, most_pixels)
    if asked.instance is None:
        return Maps(label)
    if not model.spec.labels.has_edges:
        raise ConfigError("`instance`: this model has no edges, so it takes no instance maps", hint="leave it out")
    instance = instance_values(asked.instance, most_pixels)
    if instance.shape != label.shape:
        raise LabelMapError(f"`instance` has the size {_said(instance.shape)}, but `label` has {_said(label.shape)}")
    return Maps(label, instance)


def inputs_of_maps(model: ServedModel, maps: Maps, asked: Asked, most_pixels: int) -> Arrays:
    """The inputs of one image, of maps that are decoded. Raises as `inputs_of` does."""
    spec, shape = model.spec, maps.label.shape
    size = checked_size(spec, (shape[0], shape[1]) if asked.keep_size else asked.size)
    if size[0] * size[1] > most_pixels:
        raise ImageTooLargeError(f"`size`: {size[0]}x{size[1]} exceeds the limit of {most_pixels} pixels")
    inputs: Arrays = {LABEL: np.ascontiguousarray(resize_nearest(maps.label, size))[None]}
    if spec.labels.has_edges:
        objects = np.zeros(size, np.int32) if maps.instance is None else resize_nearest(maps.instance, size)
        inputs[INSTANCE] = np.ascontiguousarray(objects)[None]
    features = photo_features(model.artifact, asked.photo, size, model.encoder)
    if features is not None:  # without an instance map each class is an instance
        regions = inputs[LABEL] if maps.instance is None else inputs[INSTANCE]
        inputs[FEATURES] = region_means(features, regions[0])[None]
    style = _style(model, asked)
    return with_features(spec, inputs if style is None else {**inputs, Z: style})


def label_values(model: ServedModel, source: MapSource, most_pixels: int) -> NDArray[Any]:
    """H x W ids of the model. Raises LabelMapError."""
    labels = model.spec.labels
    if isinstance(source, RunLengths):
        values = source.values(most_pixels)
        narrow = values.astype(label_dtype(labels)) if values.min() >= 0 and values.max() < labels.num_ids else values
        return labels_from_values(narrow, labels, ImageBytes("`runs`", b""))
    return read_label_map(source, labels)


def instance_values(source: MapSource, most_pixels: int) -> NDArray[np.int32]:
    """H x W object ids. Raises LabelMapError."""
    return source.values(most_pixels) if isinstance(source, RunLengths) else read_instance_map(source)


def _style(model: ServedModel, asked: Asked) -> NDArray[np.float32] | None:
    style = _first_style(model, asked)
    return style if asked.directions is None else moved_style(model.artifact, style, asked.directions)


def _first_style(model: ServedModel, asked: Asked) -> NDArray[np.float32] | None:
    if asked.style is None:
        return style_vector(model.artifact, asked.seed, asked.photo, model.encoder)
    z_dim = model.spec.z_dim
    if z_dim is None:
        raise ConfigError("`style`: this model has no style vector; its photos depend on the label map alone")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
        style = np.asarray(asked.style, np.float32)
    if style.shape != (z_dim,) or not np.isfinite(style).all():
        raise ConfigError(f"`style`: {len(asked.style)} numbers were sent; this model needs {z_dim} finite numbers")
    return style[None]


def _said(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def asked_of_json(body: Any, most_pixels: int) -> Asked:
    """A request's JSON -> what it asks for. Raises ConfigError that names the field."""
    if not isinstance(body, Mapping):
        raise ConfigError("the body is not a JSON object")
    if unknown := sorted(set(body) - FIELDS):
        raise ConfigError(
            f"`{shown_name(unknown[0])}` is not a field of a request",
            hint=f"the fields are {', '.join(sorted(FIELDS))}",
        )
    if "label" not in body:
        raise ConfigError("`label` is missing", hint='"label": a PNG in base64, or {"height", "width", "runs"}')
    instance = None if body.get("instance") is None else _map_of(body["instance"], "instance", most_pixels)
    photo = None
    if body.get("style_photo") is not None:
        photo = ImageBytes("`style_photo`", _from_base64(body["style_photo"], "style_photo"), most_pixels)
    size, keep = parsed_size(body.get("size"))
    return _checked(
        Asked(
            _map_of(body["label"], "label", most_pixels),
            instance,
            _seed(body.get("seed")),
            _vector(body.get("style"), "style"),
            photo,
            _vector(body.get("directions"), "directions"),
            size,
            keep,
        )
    )


def asked_beside(fields: Mapping[str, Any], label: ImageBytes, most_pixels: int) -> Asked:
    """The JSON beside a label map that does not stand in it -> what is asked for."""
    if "label" in fields:
        raise ConfigError("`label` must not be in the JSON: the image follows it in the message")
    return replace(asked_of_json({**fields, "label": ""}, most_pixels), label=label)


def asked_of_form(fields: Mapping[str, str], files: Mapping[str, bytes], most_pixels: int) -> Asked:
    """The parts of a form -> what it asks for. Raises ConfigError that names the field."""
    if "label" not in files:
        raise ConfigError("`label` is missing: the form has no file of that name", hint="-F label=@map.png")
    seed = fields.get("seed")
    if seed is not None:
        try:
            seed_value: Any = int(seed)
        except ValueError as error:
            raise ConfigError(f"`seed`: {quoted(seed)} is not an integer") from error
    else:
        seed_value = None
    size, keep = parsed_size(fields.get("size"))
    sent = {name: ImageBytes(f"`{name}`", content, most_pixels) for name, content in files.items()}
    return _checked(
        Asked(
            sent["label"],
            sent.get("instance"),
            _seed(seed_value),
            _numbers(fields, "style"),
            sent.get("style_photo"),
            _numbers(fields, "directions"),
            size,
            keep,
        )
    )


def parsed_size(value: Any) -> tuple[Size | None, bool]:
    """A size of a request -> (height and width, whether the label map's own size is meant)."""
    if value in (None, "", "model"):
        return None, False
    if value == "keep":
        return None, True
    if not isinstance(value, str):
        raise ConfigError(f"`size`: {quoted(value)} is not HEIGHTxWIDTH, model or keep")
    return parse_size(value), False


def _checked(asked: Asked) -> Asked:
    given = [
        name
        for name, value in (("seed", asked.seed), ("style", asked.style), ("style_photo", asked.photo))
        if value is not None
    ]
    if len(given) > 1:
        raise ConfigError(f"`{given[0]}` and `{given[1]}` cannot be sent together", hint="leave one of them out")
    return asked


def _map_of(value: Any, name: str, most_pixels: int) -> MapSource:
    if isinstance(value, str):
        return ImageBytes(f"`{name}`", _from_base64(value, name), most_pixels)
    if isinstance(value, Mapping) and set(value) == {"height", "width", "runs"}:
        return run_lengths(value, name, most_pixels)
    raise ConfigError(f"`{name}`: {quoted(value)} is neither base64 text nor {{height, width, runs}}")


def _from_base64(value: Any, name: str) -> bytes:
    if not isinstance(value, str):
        raise ConfigError(f"`{name}`: {quoted(value)} is not a base64 text")
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"`{name}`: it is not a base64 text ({error})") from error


def _seed(value: Any) -> int | None:
    if value is None:
        return None
    if not is_int(value) or not 0 <= value < 2**63:
        raise ConfigError(f"`seed`: {quoted(value)} is not an integer of at least 0")
    return int(value)


def _vector(value: Any, name: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    is_list = isinstance(value, list) and len(value) <= 4096
    if not is_list or any(isinstance(part, bool) or not isinstance(part, int | float) for part in value):
        raise ConfigError(f"`{name}`: {quoted(value)} is not a list of numbers")
    try:
        return tuple(float(part) for part in value)
    except OverflowError as error:
        raise ConfigError(f"`{name}`: a number is out of range") from error


def _numbers(fields: Mapping[str, str], name: str) -> tuple[float, ...] | None:
    """The numbers of a form's text."""
    if not fields.get(name):
        return None
    try:
        found = [float(part) for part in fields[name].split(",")]
    except ValueError as error:
        raise ConfigError(f"`{name}`: {quoted(fields[name])} is not a list of numbers separated by commas") from error
    return _vector(found, name)


def shown_name(text: str) -> str:
    """The name of a field as a message may show it, whoever sent it."""
    return "".join(letter if letter.isalnum() or letter in "_-." else "?" for letter in text[:40])


def text_field(fields: Mapping[str, Any], name: str) -> str | None:
    """A field that is a text, or None. Raises ConfigError for any other value."""
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"`{name}` is not a text")
    return value
