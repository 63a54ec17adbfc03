"""Open an ONNX file that takes images, make its input, and collect the facts about it.

Facts that the graph itself does not state (the normalisation, the size, the names of classes) come from the request,
from a JSON file of the same name beside it, from its metadata, or from the table of known files, in this order. Nothing
is guessed.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spade_deploy.engines.ort.session import INSTALL, load_onnxruntime, open_session
from spade_deploy.errors import (
    ConfigError,
    NotFoundError,
    quoted,
    reason_of,
)
from spade_deploy.files.onnx_data import external_files
from spade_deploy.files.reading import open_regular, parse_json, read_json, sha256_of

METADATA_KEY = "spade-deploy"
"""The key in an ONNX file's metadata under which the same JSON object may stand as in the file beside it."""

RESIZE = "Pillow bicubic, antialiased"
BATCH = 8
MAX_SIDE = 4096
MAX_JSON_BYTES = 1 << 20

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preprocessing:
    """How an input is made: (pixels - mean) / std for RGB pixels 0..255, after resizing."""

    mean: Triple
    """The numbers that are subtracted from red, green and blue."""
    std: Triple
    """The numbers that red, green and blue are divided by."""
    size: tuple[int, int] | None = None
    """Height and width that images are resized to; None leaves them as they are."""

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(math.isfinite(value) for value in values):
                raise ConfigError(f"{name}: {values} is not one number for each of red, green and blue")
        if not all(value > 0 for value in self.std):
            raise ConfigError(f"std: {self.std} are not positive")
        if self.size is not None and not (len(self.size) == 2 and all(1 <= side <= MAX_SIDE for side in self.size)):
            raise ConfigError(f"size: {quoted(self.size)} is not (height, width) in 1..{MAX_SIDE} pixels")

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """N x H x W x 3 -> N x 3 x h x w."""
        if self.size is not None and pixels.shape[1:3] != self.size:
            height, width = self.size
            resized = [
                Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
                for image in np.ascontiguousarray(pixels)
            ]
            pixels = np.stack([np.asarray(image) for image in resized])
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values = (pixels.astype(np.float32) - mean) / std
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def number_triple(text: str, field: str) -> Triple:
    """'127' or '123.7,116.3,103.5', of pixels 0..255, for red, green and blue. Raises ConfigError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3):
        raise ConfigError(f"`{field}`: {text!r} is not one number, or three as in 123.7,116.3,103.5")
    first, *rest = values
    return (first, rest[0], rest[1]) if rest else (first, first, first)


class ImageModel:
    """An open ONNX file with one image input, N x 3 x H x W float32, on the CPU.

    field: the field of a request that named it, for messages. given: facts that overrule those of the JSON file; None
    is no fact. known: facts of known files, by their digest. Raises NotFoundError, ConfigError, MissingDependencyError.
    """

    def __init__(
        self, path: Path, field: str, given: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self.path = path
        self.field = field
        self.where = f"`{field}` {path}"
        """The beginning of messages about this file."""
        self.sha256 = _sha256(path, field)
        self._session = _open(path, field)
        self.outputs: dict[str, list[Any]] = {output.name: output.shape for output in self._session.get_outputs()}
        sources = (
            ("the table of known files", known.get(self.sha256, {})),
            ("the file's metadata", _metadata(self._session, path, field)),
            (str(_sidecar(path)), _read_sidecar(path)),
            ("flags", {name: value for name, value in given.items() if value is not None}),
        )
        self.facts: dict[str, Any] = {}
        """All that is known of the file."""
        for _, facts in sources:
            self.facts.update(facts)
        for name in ("name", "output"):
            if not isinstance(self.facts.get(name, ""), str):
                raise ConfigError(f"{self.where}: {name} is {quoted(self.facts[name])}, not a text")
        self.source = ", ".join(name for name, facts in reversed(sources) if facts)
        self._input, shape = _image_input(self._session, path, field)
        self.preprocessing = self._preprocessing(shape)

    def run(self, pixels: NDArray[np.uint8], output: str) -> NDArray[Any]:
        """Compute one output for N x H x W x 3 images, a few at a time; it has a row for each image."""
        found = []
        for first in range(0, len(pixels), BATCH):
            fed = self.preprocessing.apply(pixels[first : first + BATCH])
            try:
                found.append(np.asarray(self._session.run([output], {self._input: fed})[0]))
            except Exception as error:  # onnxruntime's exceptions share no base class
                raise ConfigError(
                    f"{self.where}: failed on images of {fed.shape[2]} x {fed.shape[3]}: {reason_of(error)}"
                ) from error
        rows = np.concatenate(found)
        if len(rows) != len(pixels):
            raise ConfigError(f"{self.where}: output {output} has {rows.shape} for {len(pixels)} images")
        return rows

    def describe(self) -> dict[str, Any]:
        """The facts that a report must name so that its figures can be repeated."""
        return {
            "file": self.path.name,
            "sha256": self.sha256,
            "preprocessing": {**asdict(self.preprocessing), "resize": RESIZE, "told_by": self.source},
        }

    def _preprocessing(self, shape: tuple[int | None, int | None]) -> Preprocessing:
        missing = " and ".join(name for name in ("mean", "std") if name not in self.facts)
        if missing:
            raise ConfigError(
                f"{self.where}: how its images are normalised is not known: {missing} missing",
                hint=f'{_hint_of_fields(self.field)}write {_sidecar(self.path)}: {{"mean": [127, 127, 127],'
                ' "std": [128, 128, 128], "size": [224, 224]}',
            )
        where = self.where
        size = self.facts.get("size")
        size = None if size is None else _integers(size, f"{where}: size")
        own = None if None in shape else (int(shape[0] or 0), int(shape[1] or 0))
        if own is not None and size not in (None, own):
            raise ConfigError(f"{where}: takes only images of {own[0]} x {own[1]} pixels, not {size}")
        try:
            return Preprocessing(
                _triple(self.facts["mean"], f"{where}: mean"), _triple(self.facts["std"], f"{where}: std"), size or own
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.message}") from error


def _hint_of_fields(field: str) -> str:
    return f"give `{field}_mean` and `{field}_std` (of pixels 0..255), or " if field == "extractor" else ""


def _sha256(path: Path, field: str) -> str:
    if not os.path.lexists(path):
        raise NotFoundError(f"`{field}`: {path} does not exist", hint="give an ONNX file")
    try:
        return sha256_of(path)
    except OSError as error:
        raise NotFoundError(
            f"`{field}`: {path} cannot be read ({reason_of(error)})", hint="give an ONNX file"
        ) from error


def _open(path: Path, field: str) -> Any:
    load_onnxruntime(f"`{field}` needs ONNX Runtime, which", hint=INSTALL)
    try:
        names = external_files(path)
    except ValueError as error:
        raise ConfigError(f"`{field}` {path}: is not opened: {error}") from error
    except OSError as error:
        raise ConfigError(f"`{field}` {path}: {reason_of(error)}") from error
    for name in names:  # the names come from the file, which nobody vouches for
        try:
            open_regular(path.parent / name).close()
        except OSError as error:
            raise ConfigError(f"`{field}` {path}: its weights in {quoted(name)}: {error.strerror}") from error
    return open_session(
        path,
        failed=lambda error: ConfigError(f"`{field}` {path}: ONNX Runtime cannot load it: {reason_of(error)}"),
    )


def _image_input(session: Any, path: Path, field: str) -> tuple[str, tuple[int | None, int | None]]:
    inputs = session.get_inputs()
    described = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
    shape = inputs[0].shape if len(inputs) == 1 else []
    is_image = len(shape) == 4 and (shape[1] == 3 or not isinstance(shape[1], int))
    if not is_image or inputs[0].type != "tensor(float)":
        raise ConfigError(
            f"`{field}` {path}: takes {described or 'nothing'}; it must take one input of float32 images, N x 3 x H x W"
        )
    height, width = (side if isinstance(side, int) else None for side in shape[2:])
    return str(inputs[0].name), (height, width)


def _metadata(session: Any, path: Path, field: str) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        return parse_json(str(text))
    except ValueError as error:
        raise ConfigError(f"`{field}` {path}: its metadata {METADATA_KEY!r} is no JSON ({reason_of(error)})") from error


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_sidecar(path: Path) -> dict[str, Any]:
    beside = _sidecar(path)
    if not os.path.lexists(beside):  # a link that leads nowhere is an error, a missing file is none
        return {}
    try:
        return read_json(beside, MAX_JSON_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{beside}: cannot be read as JSON ({reason_of(error)})") from error


def _triple(value: Any, where: str) -> Triple:
    values = [value] * 3 if isinstance(value, int | float) else value
    is_right = isinstance(values, list | tuple) and len(values) == 3
    if not is_right or not all(isinstance(part, int | float) and not isinstance(part, bool) for part in values):
        raise ConfigError(f"{where} is {quoted(value)}, not a number or three of them")
    red, green, blue = values
    return float(red), float(green), float(blue)


def _integers(value: Any, where: str) -> tuple[int, int]:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    if not is_pair or not all(isinstance(side, int) and not isinstance(side, bool) for side in value):
        raise ConfigError(f"{where} is {quoted(value)}, not [height, width]")
    return int(value[0]), int(value[1])
