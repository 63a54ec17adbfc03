"""The published weight files: their names, digests and places. A file of another digest is refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spade_deploy.errors import CheckpointError, NotFoundError
from spade_deploy.files.reading import sha256_of
from spade_deploy.runs.state_dicts import check_values
from spade_deploy.runs.tensors import require_finite
from spade_deploy.runs.weight_files import load_weights


@dataclass(frozen=True)
class Published:
    """A file of weights that others publish."""

    names: tuple[str, ...]
    """The names under which it is published."""
    url: str
    """Where it can be downloaded."""
    sha256: str
    """The digest of the file."""
    packages: tuple[tuple[str, str], ...] = ()
    """Packages that bring it, and its path in each."""


INCEPTION = Published(
    ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
"""The Inception network of 2015 that defines FID, as torch-fidelity and pytorch-fid publish it: the same file."""
INCEPTION_SCRIPT = Published(
    ("inception-2015-12-05.pt",),
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
)
"""The same network as a TorchScript program, which StyleGAN's metrics and clean-fid download."""

_LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"


def _linear(net: str, sha256: str) -> Published:
    packages = (
        ("torchmetrics", f"functional/image/lpips_models/{net}.pth"),
        ("lpips", f"weights/v0.1/{net}.pth"),
    )
    return Published((f"{net}.pth",), f"{_LPIPS}/{net}.pth", sha256, packages)


BACKBONES = {
    "alex": Published(
        ("alexnet-owt-7be5be79.pth",),
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
    ),
    "vgg": Published(
        ("vgg16-397923af.pth",),
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
}
"""The networks whose features LPIPS compares, as torchvision publishes them."""
LINEAR = {
    "alex": _linear("alex", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
    "vgg": _linear("vgg", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
}
"""The learned weights of LPIPS, version 0.1."""


def default_folder() -> Path:
    """Where torchvision, torch-fidelity and pytorch-fid keep these files, too: `$TORCH_HOME/hub/checkpoints`."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def find(field: str, wanted: Sequence[Published], folder: Path | None) -> list[Path]:
    """The files, in this order. Nothing is downloaded.

    field: the setting that needs them. folder: `default_folder` if None. Raises NotFoundError, which names every file
    that is missing, its digest and its place, and CheckpointError for a file of another digest.
    """
    folder = folder if folder is not None else default_folder()
    places = [_place(one, folder) for one in wanted]
    missing = [one for one, place in zip(wanted, places, strict=True) if place is None]
    if missing:
        names = " and ".join(one.names[0] for one in missing)
        told = "; ".join(f"{one.url} (sha256 {one.sha256}) to {folder / one.names[0]}" for one in missing)
        by_package = (
            ", or `pip install 'spade-deploy[lpips]'` for the learned weights"
            if any(one.packages for one in missing)
            else ""
        )
        raise NotFoundError(
            f"`{field}`: {folder} has no {names}",
            hint=f"download {told}{by_package}; `judge_weights` DIR is another folder",
        )
    return [place for place in places if place is not None]


def find_any(field: str, choices: Sequence[Published], folder: Path | None) -> tuple[Published, Path]:
    """The first of several files, each of which is enough, that is there. Raises as `find` does, naming all of them."""
    folder, wrong = folder if folder is not None else default_folder(), []
    for one in choices:
        try:
            if (place := _place(one, folder)) is not None:
                return one, place
        except CheckpointError as error:
            wrong.append(error)
    if wrong:
        raise wrong[0]
    told = ", or ".join(f"{one.url} (sha256 {one.sha256}) to {folder / one.names[0]}" for one in choices)
    raise NotFoundError(
        f"`{field}`: {folder} has no {' and no '.join(one.names[0] for one in choices)}",
        hint=f"download {told}; `judge_weights` DIR is another folder",
    )


def _place(one: Published, folder: Path) -> Path | None:
    candidates = [folder / name for name in one.names]
    for package, inside in one.packages:
        found = importlib.util.find_spec(package)
        homes = found.submodule_search_locations if found is not None else None
        candidates += [Path(home) / inside for home in homes or ()]
    wrong = None
    for candidate in candidates:
        if candidate.is_file():
            digest = sha256_of(candidate)
            if digest == one.sha256:
                return candidate
            wrong = wrong or (candidate, digest)
    if wrong is not None:
        raise CheckpointError(
            f"{wrong[0]}: has the sha256 {wrong[1]}; the published file has {one.sha256}",
            hint=f"it is damaged or another file: remove it, and download {one.url}",
        )
    return None


def read_tensors(path: Path, wanted: dict[str, Tensor], what: str) -> dict[str, Tensor]:
    """The tensors of a file under the names, and with the shapes, of `wanted`; others are ignored.

    Raises CheckpointError for one that is missing, of another shape or not finite.
    """
    loaded = load_weights(path, what)
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: is not a state dict", hint=f"give {what}")
    found = {}
    for name, own in wanted.items():
        value = loaded.get(name)
        if not isinstance(value, Tensor) or value.shape != own.shape:
            shape = tuple(value.shape) if isinstance(value, Tensor) else "missing"
            raise CheckpointError(f"{path}: {name} is {shape}; needed is {tuple(own.shape)}", hint=f"give {what}")
        found[name] = value.float()
    check_values(found, path)
    require_finite(found, path)
    return found
