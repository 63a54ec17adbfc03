"""Released files of SPADE's neighbours as the second writings make them, and the images that those compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from spade_deploy.runs.import_request import ImportRequest
from spade_deploy.spec import NormType, Upsampling
from tests.support import clade_by_the_facts as clade
from tests.support import oasis_by_the_facts as oasis
from tests.support import pix2pixhd_by_the_facts as pix2pixhd

Image = torch.Tensor


@dataclass(frozen=True)
class Released:
    """A file as somebody might have published it."""

    state: dict[str, torch.Tensor]
    """What is in the file."""

    request: ImportRequest
    """What has to be said beside it."""

    generate: Callable[..., Image]
    """The second writing: (state, label, instance or None, z or None) -> the image."""


def clade_file(has_edges: bool, upsampling: str = "normal", norm: str = "batch", positions: bool = False) -> Released:
    """A CLADE of five labels, dontcare and maybe edges, 64 x 128."""
    request = ImportRequest(
        num_labels=5,
        has_dontcare=True,
        has_edges=has_edges,
        size=(64, 128),
        upsampling=Upsampling(upsampling),
        norm=NormType.INSTANCE if norm == "instance" else None,
    )
    generate = partial(_without_style, partial(clade.generate, upsampling=upsampling))
    return Released(clade.state_dict(6, has_edges, 2, norm=norm, positions=positions), request, generate)


def oasis_file(has_dontcare: bool, noise: int = 64) -> Released:
    """An OASIS of five labels and maybe unknown pixels, which are its first channel, 64 x 96."""
    request = ImportRequest(num_labels=5, has_dontcare=has_dontcare, size=(64, 96))
    channel_of = [1, 2, 3, 4, 5, 0] if has_dontcare else [0, 1, 2, 3, 4]

    def generate(state: Any, label: Any, instance: Any, z: Any) -> Image:
        assert instance is None
        image: Image = oasis.generate(state, label, z, channel_of)
        return image

    return Released(oasis.state_dict(len(channel_of), 2, noise=noise), request, generate)


def pix2pixhd_file(has_edges: bool, norm: str = "instance", **depth: int) -> Released:
    """A pix2pixHD of five labels, dontcare and maybe edges, 64 x 96. depth: halvings, blocks, local_blocks."""
    request = ImportRequest(num_labels=5, has_dontcare=True, has_edges=has_edges, size=(64, 96))
    state = pix2pixhd.state_dict(6 + int(has_edges), 4, norm=norm, **depth)
    return Released(state, request, partial(_without_style, partial(pix2pixhd.generate, num_ids=6, **depth)))


def _without_style(generate: Any, state: Any, label: Any, instance: Any, z: Any) -> Image:
    assert z is None
    image: Image = generate(state, label, instance)
    return image


FILES: dict[str, Callable[[], Released]] = {
    "clade": lambda: clade_file(has_edges=True),
    "clade, no edges, more": lambda: clade_file(has_edges=False, upsampling="more"),
    "clade-icpe": lambda: clade_file(has_edges=True, positions=True),
    "clade-icpe, instance norm": lambda: clade_file(has_edges=False, norm="instance", positions=True),
    "clade, instance norm": lambda: clade_file(has_edges=True, norm="instance"),
    "oasis": lambda: oasis_file(has_dontcare=True),
    "oasis, no unknown": lambda: oasis_file(has_dontcare=False),
    "pix2pixhd": lambda: pix2pixhd_file(has_edges=True, halvings=3, blocks=2),
    "pix2pixhd, local": lambda: pix2pixhd_file(has_edges=True, halvings=2, blocks=2, local_blocks=2),
    "pix2pixhd, batch norm": lambda: pix2pixhd_file(has_edges=False, norm="batch", blocks=1, local_blocks=3),
    "pix2pixhd, no edges": lambda: pix2pixhd_file(has_edges=False, halvings=2, blocks=2),
    "oasis, no noise": lambda: oasis_file(has_dontcare=True, noise=0),
}
CHAINS = ("clade", "clade-icpe", "oasis", "pix2pixhd, local")
"""Those that go through the whole chain of deployment; the others are compared as modules."""
