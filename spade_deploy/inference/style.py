"""Make the style vector for a VAE model, the mean style, that of a seed, or that of a photo; and the instance features
of a photo."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.artifact import FEATURES, LOGVAR, MU, PHOTO, Artifact, default_style, encoder_tensors
from spade_deploy.engines.ort.session import INSTALL, load_onnxruntime, open_session, types_of
from spade_deploy.errors import ArtifactError, ConfigError, LabelMapError, reason_of
from spade_deploy.images.image_file import ImageSource, Size, read_photo
from spade_deploy.spec import GeneratorSpec

_DROP = "leave it out"


Styles = tuple[NDArray[np.float32], NDArray[np.float32]]
"""(mu, logvar) of photos, N x z_dim each."""


def style_vector(
    artifact: Artifact, seed: int | None, photo: ImageSource | None, encoder: StyleEncoder | None = None
) -> NDArray[np.float32] | None:
    """The style that was asked for, 1 x z_dim, or `default_style`; None for a model without styles.

    seed: draws a standard normal style. photo: an image file, whose mean style is taken; a model with instance features
    takes them instead, see `photo_features`. encoder: the artifact's, where
    one is kept for several photos.
    Raises ConfigError if the model cannot do what is asked, LabelMapError for a photo that cannot be read.
    """
    spec = artifact.manifest.generator
    z_dim = spec.z_dim
    if z_dim is None:
        for name, value in (("seed", seed), ("style_image", None if spec.has_features else photo)):
            if value is not None:
                raise ConfigError(
                    f"`{name}`: this model has no style vector; its output follows from the labels", hint=_DROP
                )
        return None
    if photo is not None:
        return (encoder or StyleEncoder(artifact)).encode(photo)[0]
    if seed is None:
        return default_style(spec)
    if seed < 0:
        raise ConfigError(f"`seed`: {seed} is negative", hint="give 0 or more")
    return np.random.default_rng(seed).standard_normal((1, z_dim), np.float32)


def photo_features(
    artifact: Artifact, photo: ImageSource | None, size: Size | None, encoder: StyleEncoder | None = None
) -> NDArray[np.float32] | None:
    """The features of each pixel of a photo that is resized to `size`, C x H x W; the mean over each instance is taken
    later. None without a photo, and for a model without instance features.

    encoder: the artifact's, where one is kept for several photos. Raises ConfigError where label maps keep sizes of
    their own, and as `StyleEncoder.features`.
    """
    if photo is None or not artifact.manifest.generator.has_features:
        return None
    if size is None:
        raise ConfigError(
            "`style_image` contradicts `resize` never: a photo's instance features have one size, and label maps their"
            " own",
            hint="leave `resize` out",
        )
    return (encoder or StyleEncoder(artifact)).features(photo, size)


def moved_style(artifact: Artifact, style: NDArray[np.float32] | None, steps: Sequence[float]) -> NDArray[np.float32]:
    """A style, 1 x z_dim, moved along the model's main directions: by each step along the direction of its place.

    Raises ConfigError for a model without directions, and for more steps than it has.
    """
    found = artifact.style_directions()
    if style is None or found is None:
        why = "no style vector" if style is None else "no main directions in its artifact, which an older version made"
        raise ConfigError(f"this model has {why} to move along", hint="leave it out, or export the model again")
    with np.errstate(over="ignore"):  # what float32 cannot hold is told below
        numbers = np.asarray(steps, np.float32)
    if len(numbers) > len(found) or not np.isfinite(numbers).all():
        raise ConfigError(
            f"{len(numbers)} steps along main directions; this model takes up to {len(found)} finite ones"
        )
    moved: NDArray[np.float32] = style + numbers @ found[: len(numbers)]
    return moved


def encode_photo(artifact: Artifact, photo: ImageSource) -> Styles:
    """(mu, logvar) of a photo's style, 1 x z_dim each. Raises as `StyleEncoder.encode` does."""
    return StyleEncoder(artifact).encode(photo)


class StyleEncoder:
    """An artifact's encoder of photos on the CPU. It is opened for the first photo, and stays open.

    Safe to be used by several threads.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._session: Any = None
        self._opening = threading.Lock()

    def encode(self, photo: ImageSource) -> Styles:
        """(mu, logvar) of a photo's style, 1 x z_dim each.

        The whole photo is resized to the model's size with bicubic, as training's photos are.
        Raises ConfigError where the artifact has no encoder, LabelMapError for a photo that cannot be read,
        ArtifactError, MissingDependencyError.
        """
        spec = self._artifact.manifest.generator
        mu, logvar = self._outputs(photo, (spec.height, spec.width), (MU, LOGVAR))
        return mu, logvar

    def features(self, photo: ImageSource, size: Size) -> NDArray[np.float32]:
        """The instance features of each pixel of a photo, C x H x W, of a model that has them. Raises as `encode`.

        The whole photo is resized to `size`, that of the label map, with bicubic.
        """
        (found,) = self._outputs(photo, size, (FEATURES,))
        features: NDArray[np.float32] = found[0]
        return features

    def _outputs(self, photo: ImageSource, size: Size, names: Sequence[str]) -> list[Any]:
        manifest = self._artifact.manifest
        if manifest.encoder is None and manifest.generator.has_features:
            raise ConfigError(
                f"`style_image`: {self._artifact.path} has no encoder of instance features (it was imported without"
                " one)",
                hint="`spade import latest_net_G.pth --encoder latest_net_E.pth`, and export that run",
            )
        if manifest.encoder is None:
            why = {
                "import": "it was imported, and a generator file holds no encoder",
                "train": "it was trained without one, its styles are noise",
            }.get(manifest.source.origin, "none was exported with it")
            raise ConfigError(
                f"`style_image`: {self._artifact.path} has no style encoder ({why})",
                hint="`seed` N takes a random style; `spade train --vae` trains a model with an encoder, which the"
                " export includes",
            )
        try:
            pixels = read_photo(photo, size)[None]
        except LabelMapError as error:
            raise LabelMapError(f"`style_image`: {error.message}", hint=error.hint) from error
        session = self._opened(manifest.encoder.file)
        try:
            return list(session.run(list(names), {PHOTO: pixels}))
        except Exception as error:  # onnxruntime's exceptions share no base class
            path = self._artifact.path / manifest.encoder.file
            raise ArtifactError(f"{path}: the encoder failed on {photo}: {reason_of(error)}") from error

    def _opened(self, file: str) -> Any:
        with self._opening:
            if self._session is None:
                with self._artifact.vouched(file) as path:
                    session = _session(path, self._artifact.manifest.generator)
                _check_contract(path, session, self._artifact)
                self._session = session
            return self._session


def _session(path: Path, spec: GeneratorSpec) -> Any:
    load_onnxruntime(
        "`style_image`: the encoder runs in ONNX Runtime, which",
        hint=INSTALL if spec.has_features else f"{INSTALL}; `seed` needs no encoder",
    )

    what = "encoder of instance features" if spec.has_features else "style encoder"

    def failed(error: Exception) -> ArtifactError:
        return ArtifactError(
            f"{path}: ONNX Runtime cannot load the {what}: {reason_of(error)}",
            hint="pip install --upgrade onnxruntime, or `spade export` again",
        )

    return open_session(path, failed=failed)


def _check_contract(path: Path, session: Any, artifact: Artifact) -> None:
    found = sorted(types_of((*session.get_inputs(), *session.get_outputs())))
    inputs, outputs = encoder_tensors(artifact.manifest.generator)
    expected = sorted((tensor.name, tensor.dtype) for tensor in (*inputs, *outputs))
    if found != expected:
        raise ArtifactError(f"{path}: its tensors are {found}, the manifest says {expected}")
