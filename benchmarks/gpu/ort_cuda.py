"""The artifact's graphs in ONNX Runtime's CUDA provider, from label maps on the host to pixels on the host."""

from __future__ import annotations

from functools import partial

from gpu.graphs import judged
from gpu.records import Book, Row, error_text
from gpu.setting import Setting
from gpu.timing import host_timer, measure_interleaved, spread
from spade_deploy.artifact import PIXELS
from spade_deploy.engines.ort.runtime import OrtRuntime
from spade_deploy.engines.ort.session import CUDA, provider_loads
from spade_deploy.errors import RuntimeUnavailableError
from spade_deploy.spec import Precision

PRECISIONS = (Precision.FP32, Precision.FP16)
"""int8 graphs are made for TensorRT; what this provider makes of them is not measured."""


def run_ort_cuda(setting: Setting, book: Book) -> None:
    """Every graph that the provider loads, validated on the golden maps, then timed."""
    if not provider_loads(CUDA):
        raise RuntimeUnavailableError(
            f"{CUDA} does not load here", hint="pip uninstall onnxruntime, then pip install 'spade-deploy[gpu]'"
        )
    runtimes: dict[str, OrtRuntime] = {}
    wrong: dict[str, tuple[str, ...]] = {}
    errors: dict[str, dict[str, float | None]] = {}
    for precision in PRECISIONS:
        for kind in setting.kinds:
            if precision not in setting.precisions:
                continue
            name = f"{precision} {kind}"
            try:
                artifact = setting.artifact(precision)
                runtime = OrtRuntime(artifact, precision, CUDA, kind=kind)
                errors[name], wrong[name] = judged(artifact, precision, kind, runtime)
                if not wrong[name]:
                    runtimes[name] = runtime
                    book.note(f"runtime of {name}", runtime.name)
            except Exception as error:  # one graph that does not run: the others go on
                wrong[name] = (error_text(error),)
    for batch in setting.batches:
        inputs = setting.batch(batch)
        works = {name: partial(runtime.run, inputs, [PIXELS]) for name, runtime in runtimes.items()}
        measured = measure_interleaved(works, host_timer(), setting.rounds, warm_up=3 if setting.quick else 10)
        for name, failures in wrong.items():
            own = measured.times_ms.get(name, [])
            figures = {**errors.get(name, {}), **spread(own, "end_to_end")}
            failed = failures or tuple(filter(None, [measured.failures.get(name)]))
            book.add(Row(name, batch, figures, {"end_to_end": own}, failed))
    for runtime in runtimes.values():
        runtime.close()
