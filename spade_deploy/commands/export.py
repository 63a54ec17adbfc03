"""`spade export`: fold a checkpoint, write it as ONNX, and prove it equal to PyTorch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from spade_deploy.commands import output
from spade_deploy.commands.console import (
    command_line,
    duration,
    free_folder,
    line,
    note,
    print_next,
    print_places,
    stdout,
    styled,
)
from spade_deploy.commands.flags import in_flags
from spade_deploy.commands.options import MAIN, RunsFolder, command
from spade_deploy.commands.progress import step_bar
from spade_deploy.commands.student_quality import judge_student, print_student
from spade_deploy.commands.tables import print_report
from spade_deploy.errors import ConfigError
from spade_deploy.fields import to_json
from spade_deploy.printable import one_line
from spade_deploy.runs.layout import MANIFEST_JSON

if TYPE_CHECKING:
    from spade_deploy.artifact import Artifact
    from spade_deploy.evaluation import JudgeRequest
    from spade_deploy.release.release import Release
    from spade_deploy.release.request import HubRequest, ReleaseRequest
    from spade_deploy.serving.web.request import WebRequest


def _requests() -> tuple[type, ...]:
    from spade_deploy.evaluation.judge_request import JudgeRequest
    from spade_deploy.release.request import HubRequest, ReleaseRequest
    from spade_deploy.serving.web.request import WebRequest

    return ReleaseRequest, JudgeRequest, WebRequest, HubRequest, RunsFolder


@command("export", panel=MAIN, requests=_requests, needs="export")
def export(asked: ReleaseRequest, judges: JudgeRequest, web: WebRequest, hub: HubRequest, place: RunsFolder) -> None:
    """Fold a checkpoint, write it as ONNX, and prove it equal to PyTorch. Judges measure a student's photos."""
    runtime = _web_runtime(web)
    if hub.push_to_hub is not None:
        from spade_deploy.release.hub import require_hub

        require_hub(hub.push_to_hub)
    wants_more = web.web is not None or hub.push_to_hub is not None
    if wants_more and asked.checkpoint is not None and (asked.checkpoint / MANIFEST_JSON).is_file():
        _export_artifact(asked, judges, web, hub, runtime)
        return
    from spade_deploy.release.release import export_checkpoint
    from spade_deploy.runs import resolve_checkpoint

    quality = None
    with step_bar() as progress:
        if judges.first_judge is not None:  # before the export, which takes longer
            checkpoint = resolve_checkpoint(asked.checkpoint, place.runs, best=asked.best)
            quality = judge_student(checkpoint, judges, place.runs, progress)
            asked = dataclasses.replace(asked, checkpoint=checkpoint, best=False)
        made = export_checkpoint(asked, runs_dir=place.runs, quality=quality, progress=progress)
    out, artifact = stdout(), made.artifact
    result = {
        "checkpoint": made.checkpoint,
        "artifact": artifact.path,
        "graphs": [{"name": graph.name, **to_json(graph)} for graph in artifact.manifest.graphs],
        "validation": made.report,
        **({} if made.student is None else {"student": made.student.to_json()}),
    }
    output.report(result)  # an upload that fails leaves it as it is
    out.print(f"exported {one_line(made.checkpoint)}")
    print_report(made.report)
    if made.student is not None:
        print_student(made.student)
    total = sum(seconds for _, seconds in made.seconds)
    out.print(f"took {duration(total)}:")
    for what, seconds in made.seconds:
        out.print(line(styled(f"  {seconds:7.1f} s  {in_flags(what)}", "dim")))
    for text in made.notes:
        note(text)
    print_places(
        ("artifact", artifact.path),
        *((graph.name, artifact.path_of(graph.file)) for graph in artifact.manifest.graphs),
        ("report", artifact.path / "report.html"),
    )
    output.report({**result, **_publish(artifact, web, hub, runtime)})
    labels = _label_maps(made, asked)
    if labels:
        print_next("spade", "infer", labels[0], free_folder("photos"), "--artifact", artifact.path, *labels[1:])
    else:
        out.print(
            f"  to make photos: spade infer LABELS PHOTOS --artifact {command_line(artifact.path)}", soft_wrap=True
        )
        print_next("spade", "inspect", artifact.path)


def _web_runtime(web: WebRequest) -> Mapping[str, bytes]:
    """onnxruntime-web's files, looked for before the export, which takes minutes; none without a web folder."""
    if web.web is None:
        return {}
    from spade_deploy.serving.web.folder import require_free
    from spade_deploy.serving.web.onnxruntime_web import runtime_files

    require_free(web.web)
    return runtime_files(web.onnxruntime_web)


def _export_artifact(
    asked: ReleaseRequest, judges: JudgeRequest, web: WebRequest, hub: HubRequest, runtime: Mapping[str, bytes]
) -> None:
    """Write the web folder of an artifact, or upload it: neither needs PyTorch.

    Raises ConfigError for settings of an export.
    """
    from spade_deploy.artifact import Artifact

    assert asked.checkpoint is not None
    for request in (asked, judges):
        for field in dataclasses.fields(request):
            if field.name != "checkpoint" and getattr(request, field.name) != getattr(type(request)(), field.name):
                raise ConfigError(
                    f"`{field.name}`: belongs to the export of a checkpoint, and {asked.checkpoint} is an artifact",
                    hint="leave it out, or name a run or a checkpoint",
                )
    artifact = Artifact.open(asked.checkpoint)
    output.report({"artifact": artifact.path, **_publish(artifact, web, hub, runtime)})


def _publish(artifact: Artifact, web: WebRequest, hub: HubRequest, runtime: Mapping[str, bytes]) -> dict[str, object]:
    """Write the web folder and upload the artifact, as far as it is asked for; returns what `--json` says of it."""
    made: dict[str, object] = {}
    if web.web is not None:
        made |= _write_web(artifact, web.web, runtime)
    if hub.push_to_hub is not None:
        from spade_deploy.release.hub import push_to_hub

        with step_bar() as progress:
            progress.step(f"uploading it to {hub.push_to_hub}")
            upload = push_to_hub(artifact, hub.push_to_hub, public=hub.hub_public)
        stdout().print(f"  uploaded {upload.bytes / 1e6:.1f} MB to {one_line(upload.url)}", soft_wrap=True)
        made["hub"] = upload
    return made


def _write_web(artifact: Artifact, target: Path, runtime: Mapping[str, bytes]) -> dict[str, object]:
    """Write the folder and print what it weighs; returns what `--json` says of it."""
    from spade_deploy.serving.web.folder import LARGE_BYTES, write_web

    made = write_web(artifact, target, runtime)
    out = stdout()
    print_places(("web folder", made.path))
    sizes = f"{made.wasm_bytes / 1e6:.0f} MB in WebAssembly, {made.webgpu_bytes / 1e6:.0f} MB on WebGPU"
    out.print(f"  the first visit loads {sizes}; later visits load nothing", soft_wrap=True)
    if made.is_large:
        note(
            in_flags(
                f"more than {LARGE_BYTES / 1e6:.0f} MB is a lot for a page, and phones may not have enough memory;"
                " `fp16` halves what WebGPU loads, and a generator with fewer channels is smaller for all"
            )
        )
    out.print("  to open it: ", end="")
    out.print(f"python -m http.server --directory {command_line(made.path)}", soft_wrap=True)
    return {"web": made.path, "wasm_bytes": made.wasm_bytes, "webgpu_bytes": made.webgpu_bytes}


def _label_maps(made: Release, asked: ReleaseRequest) -> tuple[str | Path, ...]:
    """Label maps that the model can paint: the folder, and the options that say where its instance maps are.

    They are those of this command, of the training, or those that `spade train` wrote to try; empty if none is there.
    """
    from spade_deploy.labels.nested import has_images
    from spade_deploy.runs.records import read_checkpoint_info

    data = read_checkpoint_info(made.checkpoint).data or {}
    folders: list[tuple[Path | str | None, Path | str | None]] = [(asked.labels, asked.instances)]
    folders += [(data.get("labels_dir"), data.get("instances_dir")), (data.get("root"), None)]
    if data.get("preset") == "earth":
        folders.append(("labels", None))
    labels, instances = next(((one, of_it) for one, of_it in folders if one and Path(one).is_dir()), (None, None))
    if labels is None:
        return ()
    if labels == data.get("labels_dir") and not has_images(Path(labels)):
        labels = f"{labels}/**/*.*"  # the files lie in folders
    if not made.artifact.manifest.generator.labels.has_edges or labels == data.get("root"):
        return (labels,)
    return (labels, "--instances", instances) if instances else (labels, "--no-instances")
