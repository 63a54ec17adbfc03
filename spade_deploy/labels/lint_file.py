"""Find what is wrong with one label map, and with the photo and the instance map that belong to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spade_deploy.errors import LabelMapError
from spade_deploy.images.image_file import Samples, check_photo, read_samples, size_beside
from spade_deploy.labels.colors import eight_bit, grey_ids, match_colors
from spade_deploy.labels.files import bad_ids, describe_bad_ids, read_instance_map
from spade_deploy.labels.findings import Finding, Severity
from spade_deploy.labels.pairs import Sample
from spade_deploy.labels.palettes import moved_palette
from spade_deploy.labels.sets import is_label_set
from spade_deploy.spec import UNKNOWN_VALUE, LabelSpec

INTERPOLATED = 0.07
"""The least `interpolation_score` for which a file is reported as antialiased.

Measured on 500 real and synthetic maps (13 of COCO-Stuff, all 447 Earth tiles, 40 Voronoi maps of five label sets):
untouched they reach 0.037 (COCO-Stuff 0.001), after NEAREST resizes by 0.31, 0.5 and 1.3 0.067. Of the same maps
after interpolation this many are found: bilinear x 0.5 98 %, x 1.5 100 %; bicubic x 0.7 94 %, x 2 99.8 %;
Lanczos x 0.5 95 %, x 1.3 99 %; box x 0.5 86 %. The misses are Earth tiles: noisy land cover with few, close ids.
"""

_MIN_RAMP_PIXELS = 16  # fewer pixels prove nothing
_MAX_TRAIN_ID = 18


def check_sample(sample: Sample, labels: LabelSpec) -> list[Finding]:
    """All that is wrong with a label map and the files that belong to it."""
    readable = False
    try:
        findings = list(check_label_file(sample.label, labels))
        readable = True
    except LabelMapError as error:
        findings = [_damaged(sample.label, error)]
    for path, is_photo in ((sample.photo, True), (sample.instance, False)):
        if path is None:
            continue
        try:
            if is_photo:
                findings += _check_photo(path)
            else:
                read_instance_map(path)
            problem = size_beside(sample.label, path, is_photo=is_photo) if readable else None
        except LabelMapError as error:
            findings.append(_damaged(path, error))
            continue
        if problem is not None:
            findings.append(Finding(sample.label, "size", Severity.ERROR, problem))
    return findings


def _check_photo(path: Path) -> Iterator[Finding]:
    """Findings about a photo that can be used. Raises LabelMapError for one that cannot."""
    orientation = check_photo(path)
    if orientation != 1:
        message = (
            f"is turned upright (EXIF orientation {orientation}) when it is read: its label map must lie over it as"
            " viewers show it"
        )
        yield Finding(path, "exif", Severity.WARNING, message)


def check_label_file(path: Path, labels: LabelSpec) -> Iterator[Finding]:
    """All that is wrong with one label map by itself. Raises LabelMapError where it cannot be decoded."""
    samples = read_samples(path, "label map")
    if (reason := unclear(samples)) is not None:
        yield Finding(path, reason[0], Severity.ERROR, reason[1])
        return
    if samples.colors is not None:
        yield from _check_colors(path, samples.colors, samples.kind, labels)
    elif samples.values is not None:
        yield from _check_values(path, samples.values, samples, labels)


def _check_values(path: Path, values: NDArray[Any], samples: Samples, labels: LabelSpec) -> Iterator[Finding]:
    moved = moved_palette(values, samples.palette, labels) if samples.palette else None
    if moved is not None:
        severity = Severity.ERROR if moved.is_certain else Severity.WARNING
        yield Finding(path, "palette-order", severity, moved.message, fixable=moved.is_certain)
        if moved.is_certain:
            return
    scaled = values.astype(np.int32) * samples.grey_scale
    if samples.grey_scale > 1 and values.any() and not bad_ids(scaled, labels):
        message = (
            f"greyscale of few bits, read as its samples 0..{values.max()}; a PNG optimiser may have made it of"
            f" the ids {', '.join(map(str, np.unique(scaled)[:4]))}, which viewers show"
        )
        yield Finding(path, "depth", Severity.WARNING, message)
    yield from _check_ids(path, values.astype(np.int32), labels)


def _check_colors(path: Path, colors: NDArray[Any], kind: str, labels: LabelSpec) -> Iterator[Finding]:
    ids = grey_ids(colors, labels)
    if ids is not None:
        message = f"greyscale stored as {kind}: needed is one channel"
        yield Finding(path, "rgb", Severity.ERROR, message, fixable=True)
        yield from _check_ids(path, ids.astype(np.int32), labels)
        return
    rgb = eight_bit(colors)
    if rgb is None:
        message = f"a {kind} image whose colours need 16 bits: no label map, or a photo?"
        yield Finding(path, "rgb", Severity.ERROR, message)
        return
    match = match_colors(rgb, labels)
    if match.foreign:
        more = f", and {len(match.foreign) - 1} more such colours" if len(match.foreign) > 1 else ""
        message = f"colours instead of ids (mode {kind}), but {match.foreign[0].described}{more}"
        yield Finding(path, "rgb", Severity.ERROR, message)
        return
    if not match.is_usable:
        message = f"a {kind} image that is no label map in this palette: {match.exact:.1%} of its pixels match"
        yield Finding(path, "rgb", Severity.ERROR, f"{message}; or is it a photo?")
        return
    message = f"colours instead of ids (mode {kind}); {match.exact:.1%} of the pixels have a colour of the palette"
    yield Finding(path, "rgb", Severity.ERROR, message, fixable=True)
    if match.exact < 1:
        message = f"{1 - match.exact:.1%} of the pixels have mixed colours: antialiased edges; they take the nearest"
        yield Finding(path, "antialiased", Severity.WARNING, message, fixable=True)


def _check_ids(path: Path, ids: NDArray[np.int32], labels: LabelSpec) -> Iterator[Finding]:
    values = {int(value) for value in np.unique(ids)}
    if is_label_set(labels, "cityscapes") and (found := _train_ids(path, values)) is not None:
        yield found
        if found.severity is Severity.ERROR:
            return
    if values == {0, UNKNOWN_VALUE} and labels.num_ids <= UNKNOWN_VALUE:
        if labels.unknown_id is None:
            message = "a mask, only 0 and 255: 255 is no id here"
            yield Finding(path, "mask", Severity.ERROR, message, fixable=labels.num_labels > 1)
        else:
            message = f"only 0 and 255: a mask, or {labels.name_of(0)} with unknown pixels"
            yield Finding(path, "mask", Severity.WARNING, message)
        return
    bad = bad_ids(ids, labels)
    if bad:
        yield Finding(path, "range", Severity.ERROR, describe_bad_ids(bad, labels), ids=tuple(sorted(bad)))
    elif UNKNOWN_VALUE in values and labels.unknown_id is not None and labels.num_ids <= UNKNOWN_VALUE:
        name = labels.name_of(labels.unknown_id)
        if labels.names and not _means_unknown(name):
            message = f"255 (unknown) becomes id {labels.unknown_id}, which is {name!r} in this label set"
            yield Finding(path, "range", Severity.WARNING, message)
    score = interpolation_score(ids)
    if score >= INTERPOLATED:
        message = (
            f"the borders look interpolated (score {score:.2f}, from {INTERPOLATED} on): ids between those of two"
            " neighbours are other classes; resize label maps with nearest neighbour"
        )
        yield Finding(path, "antialiased", Severity.ERROR, message)
    unknown = {
        label_id for label_id in range(labels.num_ids) if labels.names and _means_unknown(labels.names[label_id])
    }
    if values <= unknown | {UNKNOWN_VALUE, labels.unknown_id, labels.ignore_id}:
        yield Finding(path, "empty", Severity.WARNING, "nothing but unknown pixels")


def _train_ids(path: Path, values: set[int]) -> Finding | None:
    """A finding if a map of Cityscapes seems to hold train ids (0..18, and 255 elsewhere) instead of label ids."""
    if "labelTrainIds" in path.name:
        message = "holds train ids (0..18, and 255), by its name; needed are label ids (0..33, _labelIds.png)"
        return Finding(path, "train-ids", Severity.ERROR, message)
    if not values - {UNKNOWN_VALUE} or max(values - {UNKNOWN_VALUE}) > _MAX_TRAIN_ID:
        return None
    message = "has no id above 18 (vegetation, sky, car, ...)"
    if UNKNOWN_VALUE in values and len(values) > 2:
        return Finding(path, "train-ids", Severity.ERROR, f"{message}, but 255: train ids; needed are label ids, 0..33")
    return Finding(path, "train-ids", Severity.WARNING, f"{message}: train ids? Needed are label ids, 0..33")


def interpolation_score(ids: NDArray[Any]) -> float:
    """How much the borders of a label map look like those of an interpolated image, 0..1.

    Interpolation leaves ramps: pixels strictly between their two neighbours in a row or column. The score is the share
    of border pixels that lie on a ramp, times the share of ramps among all one-pixel steps, which tells them from the
    single-pixel regions of noisy label maps (peaks and valleys as often as ramps).
    """
    ramp, border = np.zeros(ids.shape, bool), np.zeros(ids.shape, bool)
    steps = ramps = 0
    for view, on_ramp, on_border in ((ids, ramp, border), (ids.T, ramp.T, border.T)):
        before, here, after = view[:-2], view[1:-1], view[2:]
        is_ramp = ((before < here) & (here < after)) | ((before > here) & (here > after))
        on_ramp[1:-1] |= is_ramp
        ramps += int(is_ramp.sum())
        steps += int(((before != here) & (here != after)).sum())
        differs = view[1:] != view[:-1]
        on_border[1:] |= differs
        on_border[:-1] |= differs
    on_ramps = int(ramp.sum())
    return on_ramps / int(border.sum()) * ramps / steps if on_ramps >= _MIN_RAMP_PIXELS else 0.0


def unclear(samples: Samples) -> tuple[str, str] | None:
    """The linter's code and a sentence if the pixels of a file cannot be used as ids or colours; else None."""
    if samples.is_lossy:
        # Such a file cannot be used as colours either: of colour-coded maps stored as JPEG of quality 75, the nearest
        # palette colour gave back 43 % (Cityscapes) to 98 % (facades) of the ids.
        kind = "JPEG" if samples.is_jpeg else "WebP with lossy compression"
        return (
            "jpeg",
            f"a {kind}: it turns ids and colours into others along all borders; save it as PNG; or is it a photo?",
        )
    if samples.frames > 1:
        return "animation", f"an animation of {samples.frames} images; save one of them"
    if samples.orientation != 1:
        text = f"has EXIF orientation {samples.orientation}: it is not known whether it fits the photo before or"
        return "exif", f"{text} after it is turned; turn its pixels so that they fit, and save it without EXIF"
    if samples.transparent:
        text = f"{samples.transparent} pixels are transparent, and which id is behind them is not in the file"
        return "transparent", text
    return None


def _means_unknown(name: str) -> bool:
    return name.startswith("unknown") or name == "unlabeled"


def _damaged(path: Path, error: LabelMapError) -> Finding:
    return Finding(path, "damaged", Severity.ERROR, error.message.removeprefix(f"{path}: "))
