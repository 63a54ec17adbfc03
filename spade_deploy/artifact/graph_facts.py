"""The facts that every ONNX file of an artifact carries in itself, so that a file that is copied alone says them.

They are texts by name in the file's metadata, as ONNX Runtime's `get_modelmeta().custom_metadata_map` gives them; what
is no plain number or text is JSON. No time, name or path is among them: the same checkpoint gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from spade_deploy.artifact.manifest import Source
from spade_deploy.artifact.tensors import input_rule
from spade_deploy.spec import Architecture, GeneratorSpec, GraphKind, Precision
from spade_deploy.version import __version__

PREFIX = "spade."
LICENSE = "model_license"
"""ONNX's own name for this fact."""

UNKNOWN_LICENSE = "unknown"
ENCODER = "encoder"
"""The word that stands for a style encoder where a graph's kind stands."""


def model_facts(spec: GeneratorSpec, source: Source, versions: Mapping[str, str]) -> dict[str, str]:
    """The facts about a model that are the same for all of its graphs.

    versions: the packages that write the files, beside this one.
    """
    labels = spec.labels
    values = {
        "spec": spec.to_json(),
        "label_names": list(labels.names),
        "palette": [list(color) for color in labels.palette],
        "input_rule": input_rule(spec),
        "source": {"generator_sha256": source.generator_sha256, "origin": source.origin, "step": source.step},
        "versions": {"spade_deploy": __version__, **versions},
    }
    plain = {
        "height": spec.height,
        "width": spec.width,
        "num_ids": labels.num_ids,
        "parameters": "" if source.parameters is None else source.parameters,
        "unknown_id": "" if labels.unknown_id is None else labels.unknown_id,
    }
    texts = {PREFIX + name: str(value) for name, value in plain.items()}
    texts |= {PREFIX + name: _json(value) for name, value in values.items()}
    return {LICENSE: source.license or UNKNOWN_LICENSE, **texts}


def graph_facts(kind: GraphKind | str, precision: Precision, kept_fp32: Sequence[str] = ()) -> dict[str, str]:
    """The facts about one graph, by the same names in every file. kind: ENCODER for a style encoder."""
    return {
        f"{PREFIX}graph": str(kind),
        f"{PREFIX}precision": str(precision),
        f"{PREFIX}kept_fp32": _json(list(kept_fp32)),
    }


def description(spec: GeneratorSpec, kind: GraphKind | str) -> str:
    """What a graph does, in two sentences for a person who opens the file."""
    if kind == ENCODER:
        if spec.has_features:
            return "The encoder of a pix2pixHD generator's instance features: a photo in, features of each pixel out."
        return "The style encoder of a SPADE (GauGAN) generator: a photo in, mean and log variance of its style out."
    size = f"{spec.height} x {spec.width} pixels" + (f", or any {spec.side_rule}" if spec.is_dynamic else "")
    labels = f"{spec.labels.num_labels} labels"
    article = "An" if spec.architecture is Architecture.OASIS else "A"
    what = f"{article} {spec.architecture.upper()} generator for semantic image synthesis: {labels}, {size}."
    if kind is GraphKind.LOOKUP:
        return f"{what} Tables of the distinct windows of a label map in, RGB out; spade-deploy makes the tables."
    return f"{what} Label ids in, RGB out: the one-hot map and its edges are made inside."


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
