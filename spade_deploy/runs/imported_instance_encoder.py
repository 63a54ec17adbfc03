"""Read pix2pixHD's encoder of instance features (`latest_net_E.pth`), whose layers are numbered as its generator's.

`model` is a mirrored margin, convolution, norm and activation (steps 0 to 3), three steps for each halving and for each
doubling, and margin and convolution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from spade_deploy.errors import CheckpointError
from spade_deploy.networks.instance_encoder import InstanceEncoder
from spade_deploy.runs.imported_pix2pixhd import under_our_names
from spade_deploy.runs.state_dicts import ENCODER_HINT, encoder_tensors, filled
from spade_deploy.spec import FEATURE_CHANNELS, PIX2PIXHD_EDGE_KERNEL, GeneratorSpec, NormType

ANCHOR = "model.1.weight"
"""Its first convolution, which sees a photo; in a generator it sees the label map."""

_CONVOLUTION = re.compile(r"model\.(\d+)\.weight")


def read_instance_encoder(path: Path, spec: GeneratorSpec, notes: list[str]) -> InstanceEncoder:
    """The encoder of a generator of `spec`, which has instance features, in eval mode. Nothing in the file is executed.

    notes: the list that sentences on what was changed on the way are added to. Raises CheckpointError where the file
    is damaged, no such encoder, or that of another generator.
    """
    state = encoder_tensors(
        path, ANCHOR, notes, is_not="no encoder of instance features", expected="pix2pixHD's latest_net_E.pth"
    )
    if any(".conv_block." in key for key in state):
        raise CheckpointError(f"{path}: has residual blocks: this is a generator, and no encoder", hint=ENCODER_HINT)
    steps = sorted(int(match[1]) for key in state if (match := _CONVOLUTION.fullmatch(key)) and state[key].dim() == 4)
    last = steps[-1] if steps else 0
    halvings, rest = divmod(last - 5, 6)
    if rest or halvings < 1:
        raise CheckpointError(
            f"{path}: the last convolution is step {last} of the sequence, where no doublings end",
            hint="expected steps 0 to 3, then three steps a halving and a doubling, as pix2pixHD's own code has them",
        )
    _require_matching(path, spec, tuple(state[ANCHOR].shape), halvings, len(state[f"model.{last}.weight"]))
    has_weights = "model.2.weight" in state
    if has_weights == (spec.norm is NormType.INSTANCE):
        there = "has weights of batch norm" if has_weights else "has no weights of batch norm"
        raise CheckpointError(f"{path}: the encoder {there}, its generator has {spec.norm} norm", hint=ENCODER_HINT)
    own = under_our_names(state, _places(halvings), f"model.{last}", spec.norm, notes)
    make = partial(InstanceEncoder, spec, len(state[ANCHOR]), halvings)
    return filled(make, own, path, notes, ENCODER_HINT).eval()


def _require_matching(path: Path, spec: GeneratorSpec, first: tuple[int, ...], halvings: int, features: int) -> None:
    """Raise CheckpointError for an encoder of other photos, features or sizes than the generator's."""
    kernel = (PIX2PIXHD_EDGE_KERNEL, PIX2PIXHD_EDGE_KERNEL)
    if first[1:] != (3, *kernel):
        raise CheckpointError(
            f"{path}: the first convolution is {first}, and not of 3 channels of a photo and {kernel[0]} wide: this is"
            " no encoder of instance features",
            hint=ENCODER_HINT,
        )
    if features != FEATURE_CHANNELS:
        raise CheckpointError(
            f"{path}: the encoder makes {features} features a pixel, its generator sees {FEATURE_CHANNELS}",
            hint=ENCODER_HINT,
        )
    if halvings > spec.doublings:
        raise CheckpointError(
            f"{path}: the encoder halves a photo {halvings} times, its generator the label map {spec.doublings} times:"
            f" not every size that is a {spec.side_rule} can be encoded",
            hint=f"{ENCODER_HINT}; or import without `encoder`, and feed features that were made elsewhere",
        )


def _places(halvings: int) -> Iterator[tuple[str, str]]:
    """Each convolution that a norm follows: its place in the file, and the name of both here."""
    yield "model.1", "conv_in"
    for index in range(halvings):
        yield f"model.{4 + 3 * index}", f"down_{index}"
        yield f"model.{4 + 3 * (halvings + index)}", f"up_{index}"
