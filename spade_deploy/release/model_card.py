"""Write README.md, the model card: what the model is, how to run it, how good the files are, what is not known.

It has the form that Hugging Face's hub reads, so that an artifact's folder can be uploaded as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from spade_deploy.artifact import (
    BANK,
    UNKNOWN_LICENSE,
    EncoderGraph,
    Manifest,
    encoder_tensors,
    graph_tensors,
    input_rule,
    output_tensors,
)
from spade_deploy.pages.render import decibel, percent, scientific
from spade_deploy.spec import Architecture, GeneratorSpec, GraphKind
from spade_deploy.validation.report import ValidationReport
from spade_deploy.version import __version__

HUB_LICENSES = (
    "apache-2.0",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "gpl-3.0",
    "mit",
    "openrail",
    UNKNOWN_LICENSE,
)
"""Licences that the hub knows by these names; any other one is given to it as 'other', with its name."""

SHOWN_NAMES = 200
"""At most so many label names are listed."""

_CLIENT = """\
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("{file}", providers=["CPUExecutionProvider"])
label = np.zeros((1, {height}, {width}), np.{dtype})  # one class id a pixel
(pixels,) = session.run(["pixels"], {feed})  # N x H x W x 3, RGB"""


def model_card(manifest: Manifest, report: ValidationReport, golden_from: str) -> str:
    """The text of README.md.

    golden_from: where the label maps of the validation came from, for people.
    """
    spec, source = manifest.generator, manifest.source
    step = "" if source.step is None else f", step {source.step}"
    what = (
        f"A generator of the architecture {spec.title}: a semantic label map in, a photo out. {_size(spec)} Exported by"
        f" spade-deploy {__version__} from the run {_plain(source.run)}{step} ({source.origin}); SHA-256 of the"
        f" weights: `{source.generator_sha256}`."
    )
    client = (
        "`labels/` holds label maps: PNG files with one class id a pixel. Without spade-deploy, any ONNX client runs"
        " the dense graph:"
    )
    proof = (
        f"Every graph was compared with the untouched PyTorch module ({report.inputs}: {golden_from}). The figures say"
        " how equal the files are to what was trained; they do not say how good its photos are."
    )
    parts = [
        _front_matter(source.license, spec),
        f"# {_plain(source.run)}",
        what,
        "## Use it",
        f"```sh\n{_command(spec)}\n```",
        client,
        f"```python\n{_client(manifest)}\n```",
        _tensor_table(spec, manifest.encoder),
        "\n".join(f"- {rule['sentence']}" for rule in input_rule(spec).values()),
        "## Files",
        _file_table(manifest),
        "## Figures",
        proof,
        _figures(report),
        "Images lie in -1..1; a flipped pixel has another value in the output pixels. The limits are in report.html.",
        "## Labels",
        _labels(spec),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(manifest)),
        "## Licence of the weights",
        _license(source.license, source.origin, spec),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(license_name: str, spec: GeneratorSpec) -> str:
    found = license_name or UNKNOWN_LICENSE
    known = found.lower() if found.lower() in HUB_LICENSES else "other"
    head: dict[str, Any] = {"license": known}
    if known == "other":
        head["license_name"] = found.lower().replace(" ", "-")
    head |= {
        "library_name": "onnx",
        "pipeline_tag": "image-to-image",
        "tags": [
            "onnx",
            "onnxruntime",
            "semantic-image-synthesis",
            *(["gaugan"] if spec.architecture == "spade" else []),
            str(spec.architecture),
            "spade-deploy",
        ],
    }
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---"


def _size(spec: GeneratorSpec) -> str:
    text = f"It was trained for {spec.height} x {spec.width} pixels"
    return f"{text} and runs at any height and width that are a {spec.side_rule}." if spec.is_dynamic else f"{text}."


def _command(spec: GeneratorSpec) -> str:
    if spec.labels.has_edges:
        return "spade infer labels/ photos/ --artifact . --instances instances/"
    return "spade infer labels/ photos/ --artifact ."


def _client(manifest: Manifest) -> str:
    spec = manifest.generator
    dense = next(graph for graph in manifest.graphs if graph.kind is GraphKind.DENSE)
    style = f"np.zeros((1, {spec.z_dim}), np.float32)"
    if spec.noise_channels:
        style = f"np.random.default_rng(0).standard_normal((1, {spec.z_dim}), np.float32)"
    feeds = {"label": "label", "instance": "label.astype(np.int32)", "z": style}
    # The label map of this example is all class 0, whose positions are zeros.
    feeds["position"] = f"np.zeros((1, 2, {spec.height}, {spec.width}), np.float32)"
    # A canvas without a patch, all of it a hole: the canvases of a memory bank are made by spade-deploy.
    feeds["canvas"] = (
        f"np.eye(4, dtype=np.float32)[3].reshape(1, 4, 1, 1).repeat({spec.height}, 2).repeat({spec.width}, 3)"
    )
    feeds["features"] = f"np.zeros((1, 3, {spec.height}, {spec.width}), np.float32)"
    feed = ", ".join(f'"{tensor.name}": {feeds[tensor.name]}' for tensor in graph_tensors(spec))
    return _CLIENT.format(
        file=dense.file, height=spec.height, width=spec.width, dtype=spec.labels.id_type, feed=f"{{{feed}}}"
    )


def _tensor_table(spec: GeneratorSpec, encoder: EncoderGraph | None) -> str:
    rows = [("input", tensor) for tensor in graph_tensors(spec)]
    rows += [("output", tensor) for tensor in output_tensors(spec)]
    if encoder is not None:
        inputs, outputs = encoder_tensors(spec)
        rows += [(f"{encoder.file}, input", tensor) for tensor in inputs]
        rows += [(f"{encoder.file}, output", tensor) for tensor in outputs]
    return _table(
        ("", "name", "type", "shape", "meaning"),
        [
            (what, f"`{tensor.name}`", tensor.dtype, " x ".join(map(str, tensor.shape)), tensor.meaning)
            for what, tensor in rows
        ],
    )


def _file_table(manifest: Manifest) -> str:
    graphs = [(graph.file, graph.name) for graph in manifest.graphs]
    if manifest.encoder is not None:
        graphs.append((manifest.encoder.file, "encoder of photos"))
    return _table(("file", "graph", "size"), [(f"`{file}`", name, _size_of(manifest, file)) for file, name in graphs])


def _size_of(manifest: Manifest, file: str) -> str:
    """The size of a graph, the file with its weights included where there is one."""
    size = sum(fact.bytes for name, fact in manifest.files.items() if name == file or name.startswith(f"{file}."))
    return f"{size / 1e6:.1f} MB"


def _figures(report: ValidationReport) -> str:
    return _table(
        ("graph", "verdict", "max error", "mean error", "PSNR", "SSIM", "flipped pixels"),
        [
            (
                result.name,
                "pass" if result.passed else "fail",
                scientific(result.diff.max_abs),
                scientific(result.diff.mean_abs),
                decibel(result.diff.psnr_db),
                f"{result.diff.ssim:.6f}",
                percent(result.diff.flip_share),
            )
            for result in report.results
        ],
    )


def _labels(spec: GeneratorSpec) -> str:
    labels = spec.labels
    if not labels.names:
        return f"{labels.num_ids} ids without names: the checkpoint has none."
    shown = ", ".join(f"{number} {_plain(name)}" for number, name in enumerate(labels.names[:SHOWN_NAMES]))
    left = len(labels.names) - SHOWN_NAMES
    return f"{shown}{f', and {left} more in manifest.json' if left > 0 else ''}."


def _limits(manifest: Manifest) -> list[str]:
    spec = manifest.generator
    limits = [
        "Label maps of scenes, scales or label sets that it was not trained on give poor photos, without an error.",
        "Equality is proved on few label maps and on one processor; `spade validate` repeats the proof elsewhere.",
    ]
    if spec.is_dynamic:
        limits.append(f"Sizes other than {spec.height} x {spec.width} run, but the weights have not seen them.")
    if spec.has_bank:
        limits.append(
            f"{BANK} holds pieces of the photos that it was trained on, whose licence holds for them here, too."
        )
        limits.append("The example above runs without the memory bank; `spade infer` and `spade serve` run with it.")
    if manifest.source.origin == "import":
        limits.append("The weights were imported: what their file does not tell was guessed, see the run's checkpoint.")
    return limits


def _license(name: str, origin: str, spec: GeneratorSpec) -> str:
    if name:
        return f"{name}, as stated by whoever exported it. The code that made these files is Apache-2.0."
    text = "Not stated: ask whoever trained the model. `spade export --license NAME` writes it here."
    if origin == "import" and spec.architecture is not Architecture.SPADE:
        text += (
            f" Released weights of {spec.architecture} have terms of their own, many for non-commercial use. They"
            " hold for whatever is exported of them, too: see where the file came from."
        )
    elif origin == "import":
        text += (
            " The weights that NVIDIA released with SPADE are under CC BY-NC-SA 4.0, for non-commercial use, and so is"
            " whatever is exported of them."
        )
    return f"{text} The code that made these files is Apache-2.0."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """A text in which nothing is markup of a table or of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
