"""Write a model repository of the Triton Inference Server: the folder that its server is started with.

    NAME/config.pbtxt          the configuration of each model
    NAME/labels.txt            the name of each label id, a line each
    NAME/1/model.onnx          the graph: 1 is the version
    NAME/warmup/label          the label map of the requests that Triton answers before it takes others
    package.json               what was written, for people and for the next package; Triton reads no file beside models

The folder appears whole or not at all, and only an earlier package is replaced.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from spade_deploy.artifact import MANIFEST, Artifact
from spade_deploy.errors import ArtifactError, ConfigError, quoted, reason_of
from spade_deploy.files.atomic import atomic_folder
from spade_deploy.files.onnx_data import external_files
from spade_deploy.files.own_folder import record_text, require_free
from spade_deploy.files.reading import read_json, sha256_of
from spade_deploy.packaging.engines import choose_plan
from spade_deploy.packaging.request import PackageRequest
from spade_deploy.packaging.triton_models import Models, TritonModel
from spade_deploy.progress import SILENT, Progress
from spade_deploy.runs.folders import usual_name
from spade_deploy.spec import GraphKind, Precision
from spade_deploy.version import __version__

RECORD = "package.json"
CONFIG = "config.pbtxt"
_FORMAT = 1


@dataclass(frozen=True)
class Repository:
    """A model repository that was written."""

    path: Path
    """The folder."""
    models: tuple[str, ...]
    """The models that clients call, the one of the dense graph first."""
    inner: tuple[str, ...]
    """The models that only other models call."""
    left_out: tuple[str, ...]
    """What was left out, and why; a sentence each."""
    bytes: int
    """The size of all files."""


def write_repository(artifact: Artifact, asked: PackageRequest, progress: Progress = SILENT) -> Repository:
    """Write the model repository that `asked.triton` names; an older one is replaced as a whole.

    Raises ConfigError for a folder that holds something else, or that cannot be written, and for a model with a memory
    bank; and what `Artifact.graph`
    raises for a precision that is not there.
    """
    target = asked.triton
    if artifact.manifest.generator.has_bank:
        raise ConfigError(
            "`triton`: this model completes a canvas of photo segments, which no model of Triton makes",
            hint="serve it with `spade serve`, which makes the canvas",
        )
    require_free(target, RECORD, "triton", "model repository that `spade package` wrote")
    models, left_out = _models(artifact, asked)
    _require_same_name(target, models[0].name)
    try:
        with atomic_folder(target) as folder:
            for model in models:
                progress.step(f"writing {model.name}")
                _write_model(artifact, model, folder / model.name)
            files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            facts = {
                "format": _FORMAT,
                "spade_deploy": __version__,
                "artifact_manifest_sha256": sha256_of(artifact.path / MANIFEST),
                "models": [model.name for model in models],
                "left_out": left_out,
            }
            (folder / RECORD).write_text(record_text(files, facts), encoding="utf-8")
            total = sum((folder / name).stat().st_size for name in files)
    except OSError as error:
        raise ConfigError(f"`triton`: {target} cannot be written: {reason_of(error)}") from error
    names = [model.name for model in models]
    inner = [name for name in names if name.endswith("-lookup-graph")]
    return Repository(target, tuple(name for name in names if name not in inner), tuple(inner), tuple(left_out), total)


def _require_same_name(target: Path, name: str) -> None:
    """Raise ConfigError if the folder has models of another name, as others make one repository of many models."""
    try:
        old = read_json(target / RECORD)["models"][0]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return
    if old != name:
        raise ConfigError(
            f"`triton`: {target} has the model {quoted(old)}, which {quoted(name)} would replace",
            hint="name another folder, and give Triton each as a repository; to replace that model, delete it first",
        )


def _models(artifact: Artifact, asked: PackageRequest) -> tuple[list[TritonModel], list[str]]:
    """The models, and what was left out."""
    make = Models(artifact, asked, asked.name or usual_name(artifact.path.resolve()))
    dense = artifact.graph(asked.precision)
    models, left_out = [make.dense(dense)], []
    graphs = artifact.manifest.graphs
    lookup = [one for one in graphs if one.kind is GraphKind.LOOKUP and one.precision is dense.precision]
    if lookup:
        models += [make.lookup(lookup[0]), make.lookup_graph(lookup[0])]
        if lookup[0].break_even_share == 0:
            left_out.append(
                f"{models[1].name} runs every map on the lookup graph, though the export measured that the dense graph"
                f" ({models[0].name}) is as fast on a CPU; compare both on your server"
            )
    else:
        left_out.append(f"there is no model of the lookup graph: {_why_no_lookup(artifact, dense.precision)}")
    plan, why = choose_plan(artifact, asked.precision)
    left_out += why
    if plan is not None:
        models.append(make.tensorrt(artifact.graph(plan.precision), plan))
    return models, left_out


def _why_no_lookup(artifact: Artifact, precision: Precision) -> str:
    spec = artifact.manifest.generator
    if GraphKind.LOOKUP not in spec.graph_kinds:
        return f"{spec.architecture} generators have none"
    return f"the artifact has none in {precision}"


def _write_model(artifact: Artifact, model: TritonModel, folder: Path) -> None:
    folder.mkdir()
    (folder / CONFIG).write_text(model.config_text(), encoding="utf-8")
    for name, content in model.contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    if model.graph is None:
        return
    target = folder / model.graph_file
    target.parent.mkdir(parents=True, exist_ok=True)
    with artifact.vouched(model.graph.file) as source:
        try:
            beside = external_files(source)  # by the names that the graph has for them
        except ValueError as error:
            raise ArtifactError(f"{source} is not packaged: {error}") from error
        shutil.copyfile(source, target)
        for name in beside:
            shutil.copyfile(source.parent / name, target.parent / name)
