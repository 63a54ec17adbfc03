"""Artifact -> a static folder: the paint page, onnxruntime-web, and the model's graphs.

    index.html, sw.js       asked for each time
    page/DIGEST/            the page's files
    ort/VERSION/            onnxruntime-web
    model/DIGEST/           the graphs, label maps to start from, a golden map with its pixels (golden.bin), and
                            model.json with what the page has to know
    web.json                what was written, for people and for the next export

What is below page, ort and model never changes under its address, so browsers may keep it.

A browser runs fp32 in WebAssembly, which has no arithmetic in half precision, and fp16 on WebGPU where the artifact has
such a graph and the GPU can; each loads one of them. WebGPU has to make the golden map's pixels first, since its
drivers and kernels differ from machine to machine; where it does not, the page runs in WebAssembly.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spade_deploy.artifact import INSTANCE, LABEL, PIXELS, Artifact, Graph, Z
from spade_deploy.errors import ArtifactError, ConfigError, reason_of
from spade_deploy.files import own_folder
from spade_deploy.files.atomic import atomic_folder
from spade_deploy.files.onnx_data import external_files
from spade_deploy.lookup.tables import modulated_channels
from spade_deploy.metrics.tolerances import FP16_MIN_PSNR_DB
from spade_deploy.runs.folders import usual_name
from spade_deploy.serving.models import model_facts
from spade_deploy.serving.page_files import INDEX, POLICY, digest_of, page_digest, page_files
from spade_deploy.serving.pictures import ids_png
from spade_deploy.serving.web.onnxruntime_web import VERSION, WASM_FILES, WEBGPU_FILES
from spade_deploy.spec import GraphKind, Precision
from spade_deploy.version import __version__

LARGE_BYTES = 200_000_000
"""A visitor's download from which on a warning is given."""
LEAST_DENSE_SHARE = 0.5
"""In WebAssembly a map with a smaller share of unique patterns stays on the lookup graph, even where the export has
measured a smaller break-even: convolutions are slower there, and the dense graph would have to be loaded first. The
break-even was 0.62 with two threads and 0.85 with one; the export had measured 0.38 (benchmarks/web_engine.py)."""
RECORD = "web.json"
_FORMAT = 1
_GOLDEN = "golden.bin"
"""int32 ids, int32 ids of instances (those of the label map again for a model without edges), uint8 pixels."""
_WORKER = Path(__file__).parent / "sw.js"
_WEB_POLICY = POLICY.replace("script-src 'self'", "script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'")
_META_POLICY = _WEB_POLICY.replace("; frame-ancestors 'none'", "")
"""Of the page itself: a meta tag cannot forbid frames. The service worker's headers do."""
_NOTICE = f"""onnxruntime-web {VERSION}, in ort/. MIT License, Copyright (c) Microsoft Corporation.
https://github.com/microsoft/onnxruntime/blob/v{VERSION}/LICENSE

The page: spade-deploy {__version__}, Apache-2.0.
"""


@dataclass(frozen=True)
class WebFolder:
    """A folder that was written."""

    path: Path
    """The folder."""
    wasm_bytes: int
    """What a first visit loads that runs the model in WebAssembly, before the host compresses it."""
    webgpu_bytes: int
    """The same on a GPU with half precision."""

    @property
    def is_large(self) -> bool:
        return max(self.wasm_bytes, self.webgpu_bytes) > LARGE_BYTES


def require_free(target: Path) -> None:
    """Raise ConfigError unless there is nothing at `target`, an empty folder, or a web folder and nothing else."""
    own_folder.require_free(target, RECORD, "web", "web folder")


def write_web(artifact: Artifact, target: Path, runtime: Mapping[str, bytes]) -> WebFolder:
    """Write the folder; an older one is replaced as a whole. runtime: of `onnxruntime_web.runtime_files`.

    Raises ConfigError as `require_free` does and for a model with positions, a memory bank or instance
    features, ArtifactError for a graph
    whose weights lie beside it.
    """
    require_free(target)
    if artifact.manifest.generator.has_positions:
        raise ConfigError(
            "`web`: this model needs the position of each pixel in its region, which the page cannot compute",
            hint="leave `web` out, and serve it with `spade serve`",
        )
    if artifact.manifest.generator.has_bank:
        raise ConfigError(
            "`web`: this model completes a canvas of photo segments, which the page does not make",
            hint="leave `web` out, and serve it with `spade serve`",
        )
    if artifact.manifest.generator.has_features:
        raise ConfigError(
            "`web`: this model sees instance features, which the page does not make",
            hint="leave `web` out, and serve it with `spade serve`",
        )
    graphs = _graphs(artifact)
    model = _model_files(artifact, graphs)
    place = f"model/{digest_of(model)}/"
    files = {f"page/{page_digest()}/{name}": content for name, content in page_files().items() if name != INDEX}
    files |= {f"ort/{VERSION}/{name}": content for name, content in runtime.items()}
    files |= {place + name: content for name, content in model.items()}
    files["index.html"] = _index(place)
    files["THIRD_PARTY.txt"] = _NOTICE.encode()
    files["sw.js"] = _service_worker(files)
    facts = {"format": _FORMAT, "spade_deploy": __version__, "onnxruntime_web": VERSION}
    files[RECORD] = own_folder.record_text(files, facts).encode()
    try:
        with atomic_folder(target) as folder:
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
    except OSError as error:
        raise ConfigError(f"`web`: {target} cannot be written: {reason_of(error)}") from error

    def visit(names: tuple[str, ...], graph: Graph) -> int:
        others = [content for name, content in files.items() if name.startswith("page/") or name == "index.html"]
        return sum(map(len, [*others, *(runtime[name] for name in names), model[graph.file]]))

    webgpu_bytes = visit(WEBGPU_FILES, _for_gpu(graphs)) + len(model[_GOLDEN])
    return WebFolder(target, visit(WASM_FILES, graphs[0]), webgpu_bytes)


def _graphs(artifact: Artifact) -> tuple[Graph, ...]:
    """The graphs that a browser may run, in the order in which WebAssembly prefers them."""
    there = [graph for graph in artifact.manifest.graphs if graph.precision in (Precision.FP32, Precision.FP16)]
    has_fp32 = any(graph.precision is Precision.FP32 for graph in there)
    has_dense = {graph.precision for graph in there if graph.kind is GraphKind.DENSE}

    def is_kept(graph: Graph) -> bool:
        if graph.kind is GraphKind.DENSE:
            return True
        wins_nothing = graph.break_even_share == 0 and graph.precision in has_dense
        return not wins_nothing and (graph.precision is Precision.FP32 or not has_fp32)

    kept = filter(is_kept, there)
    return tuple(sorted(kept, key=lambda graph: (graph.precision is Precision.FP16, graph.kind is GraphKind.DENSE)))


def _for_gpu(graphs: tuple[Graph, ...]) -> Graph:
    return min(graphs, key=lambda graph: (graph.precision is not Precision.FP16, graph.kind is not GraphKind.DENSE))


def _model_files(artifact: Artifact, graphs: tuple[Graph, ...]) -> dict[str, bytes]:
    spec = artifact.manifest.generator
    files = {}
    for graph in graphs:
        with artifact.vouched(graph.file) as path:
            if external_files(path):
                raise ArtifactError(
                    f"{path}: its weights are in other files, which a page cannot load",
                    hint="only graphs below 2 GB run in a browser",
                )
            files[graph.file] = path.read_bytes()
    golden = artifact.golden()
    labels = golden.inputs[LABEL]
    for number, ids in enumerate(labels):
        files[f"sample-{number}.png"] = ids_png(ids)
    facts = model_facts(usual_name(artifact.path.resolve()), artifact)
    has_lookup = GraphKind.LOOKUP in spec.graph_kinds
    ids, pixels = labels[0], golden.outputs[PIXELS][0]
    instances = golden.inputs[INSTANCE][0] if spec.labels.has_edges else ids
    files[_GOLDEN] = ids.astype("<i4").tobytes() + instances.astype("<i4").tobytes() + pixels.tobytes()
    directions = artifact.style_directions()
    moves = [] if directions is None else directions.tolist()
    styles = {"z_dim": spec.z_dim, "from_photo": False, "directions": len(moves)}
    about = {
        "format": _FORMAT,
        "model": {**facts, "samples": len(labels), "styles": styles},
        "graph": {
            "num_ids": spec.labels.num_ids,
            "id_type": spec.labels.id_type,
            "has_edges": spec.labels.has_edges,
            "has_latent": spec.is_dynamic,
            "z_dim": spec.z_dim,
            "default_seed": 0 if spec.noise_channels else None,
            "directions": moves,
            "kernel": spec.window_kernel,
            "stride": spec.stride,
            "levels": [list(pair) for pair in modulated_channels(spec).items()] if has_lookup else [],
        },
        "graphs": [
            {
                "kind": str(graph.kind),
                "precision": str(graph.precision),
                "file": graph.file,
                "bytes": len(files[graph.file]),
                "dense_above": graph.break_even_share and max(graph.break_even_share, LEAST_DENSE_SHARE),
            }
            for graph in graphs
        ],
        "golden": {
            "file": _GOLDEN,
            "height": ids.shape[0],
            "width": ids.shape[1],
            "style": golden.inputs[Z][0].tolist() if Z in golden.inputs else None,
            "min_psnr_db": FP16_MIN_PSNR_DB,
        },
        "samples": [f"sample-{number}.png" for number in range(len(labels))],
        "ort": f"../../ort/{VERSION}/",
    }
    return {"model.json": json.dumps(about).encode(), **files}


def _index(place: str) -> bytes:
    text = page_files()[INDEX].decode()
    text = text.replace('"./', f'"./page/{page_digest()}/')
    text = text.replace('data-engine="server"', f'data-engine="browser" data-model="./{place}"')
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_META_POLICY}">'
    return re.sub(r'(<meta charset="utf-8">)', rf"\1\n  {policy}", text, count=1).encode()


def _service_worker(files: Mapping[str, bytes]) -> bytes:
    """The script with the folder's facts in front, so that its bytes change whenever another file does."""
    small = [name for name in files if name.startswith("page/") or name.endswith(("model.json", ".png"))]
    facts = {
        "version": digest_of(files),
        "files": sorted(name for name in files if name.startswith(("page/", "ort/", "model/"))),
        "first": ["./", *sorted(small)],
        "policy": _WEB_POLICY,
    }
    return f"const FACTS = {json.dumps(facts)};\n".encode() + _WORKER.read_bytes()
