"""Which engine runs an artifact. Nothing is chosen silently: what was asked for by name runs, or is an error.

To add an engine, write a folder with an `open.py` that has these two functions, and add one line to `ENGINES`:

    def can_run(wanted: RuntimeRequest) -> bool      # only `auto` calls it; it is cheap and loads little
    def open_runtime(wanted: RuntimeRequest) -> Runtime
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import ModuleType

from spade_deploy.artifact import Artifact
from spade_deploy.engines.base import Backend, GraphChoice, Runtime, RuntimeRequest, parse_graph_choice
from spade_deploy.errors import ConfigError, RuntimeUnavailableError, SpadeError
from spade_deploy.machine.cores import at_most_cores
from spade_deploy.settings import check_one_of, check_positive
from spade_deploy.spec import Precision


@dataclass(frozen=True)
class Engine:
    """One way to run an artifact."""

    backend: str
    """What the user calls it."""
    module: str
    """The module with `can_run` and `open_runtime`. It is imported when the engine is tried."""
    is_automatic: bool = True
    """Whether `auto` tries it here. On a CPU `tuning/open.py` also takes others, after it checked their images."""
    title: str = ""
    """What it is called in a sentence; empty for one that is never compared with others."""
    on_cpu: bool = False
    """Whether it runs on the CPU, where the engines are compared with each other."""
    distributions: tuple[str, ...] = ()
    """The packages whose versions decide how fast it is."""
    has_bf16: bool = False
    """Whether it runs fp32 graphs in bfloat16. Of a request for bf16, `auto` tries these engines and no others."""
    note_on_failure: str = ""
    """The note, followed by the reason, in the runtime's name after `auto` tried this engine, failed, and took a later
    one. For an engine without a note such a failure is an error."""

    def load(self) -> ModuleType:
        """Import the module."""
        return importlib.import_module(self.module)


ENGINES = (
    Engine("tensorrt", "spade_deploy.engines.tensorrt.open", note_on_failure="its TensorRT engine does not run here"),
    Engine("cuda", "spade_deploy.engines.ort.open"),
    Engine(
        "cpu",
        "spade_deploy.engines.ort.open",
        title="ONNX Runtime",
        on_cpu=True,
        distributions=("onnxruntime", "onnxruntime-gpu"),
    ),
    Engine(
        "openvino",
        "spade_deploy.engines.openvino.open",
        is_automatic=False,
        has_bf16=True,
        title="OpenVINO",
        on_cpu=True,
        distributions=("openvino",),
    ),
    Engine("ort-tensorrt", "spade_deploy.engines.ort.open", is_automatic=False),
)
"""The engines, in the order in which `auto` tries them."""


def open_runtime(
    artifact: Artifact,
    precision: Precision | None = None,
    backend: Backend | str = Backend.AUTO,
    threads: int | None = None,
    graph: GraphChoice | str = GraphChoice.AUTO,
) -> Runtime:
    """Load an artifact's graph in the first engine that can run, or in the one that `backend` names.

    On a CPU `auto` is ONNX Runtime here; `tuning/open.py` takes the engine that was measured to be the fastest.
    precision: None takes fp16 on a GPU if the artifact has it, else fp32; among TensorRT engines it takes the first of
    fp16, int8, fp32 that exists. threads: the CPU threads, at most one a core; None takes one a core.
    graph: `auto` never takes a lookup graph that was not measured to win; on a GPU it takes the engine of a lookup
    graph only if there is no dense engine.
    Raises RuntimeUnavailableError, MissingDependencyError, ConfigError, or ArtifactError for a graph that is not there.
    """
    name = known_backend(str(backend))
    choice = parse_graph_choice(str(graph))
    check_positive("threads", threads)
    threads = at_most_cores(threads, "threads")
    wanted = RuntimeRequest(artifact, name, precision, threads, choice)
    wants_bf16 = precision is Precision.BF16
    if name == Backend.AUTO:
        able = [one for one in ENGINES if (one.has_bf16 if wants_bf16 else one.is_automatic)]
        runtime, note = open_first(wanted, able)
        if runtime is None:
            raise RuntimeUnavailableError(f"no engine runs {artifact.path} here{note}", hint="`spade doctor` says more")
        return runtime
    (engine,) = (engine for engine in ENGINES if engine.backend == name)
    if wants_bf16 and not engine.has_bf16:
        others = " or ".join(one.backend for one in ENGINES if one.has_bf16)
        raise ConfigError(f"`precision`: `backend` {name} has no bf16 arithmetic", hint=f"`backend` {others} has it")
    opened: Runtime = engine.load().open_runtime(wanted)
    return opened


def on_gpu() -> list[Engine]:
    """The engines that `auto` tries before those on the CPU, in this order."""
    return [engine for engine in ENGINES if engine.is_automatic and not engine.on_cpu]


def open_first(wanted: RuntimeRequest, engines: Iterable[Engine]) -> tuple[Runtime | None, str]:
    """Open the first engine that can run.

    Returns None where none can, and a note that says why earlier ones failed; it is part of the runtime's name already.
    Raises errors of engines without a note on failure.
    """
    note = ""
    for engine in engines:
        asked = replace(wanted, backend=engine.backend)
        try:
            opener = engine.load()
            if not opener.can_run(asked):
                continue
            runtime: Runtime = opener.open_runtime(asked)
        except SpadeError as error:
            if not engine.note_on_failure:
                raise
            note += f" ({engine.note_on_failure}: {error.message})"
            continue
        runtime.name += note
        return runtime, note
    return None, note


def known_backend(backend: str) -> str:
    """The name itself. Raises ConfigError, which lists the engines, if there is none of that name."""
    known = dict.fromkeys([*Backend, *(engine.backend for engine in ENGINES)])
    check_one_of("backend", backend, known)
    return backend
