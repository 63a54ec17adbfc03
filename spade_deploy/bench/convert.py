"""What other people's tools make of the trained module: `python -m spade_deploy.bench.convert CONVERSION.json`.

It is a process of its own, as the tools take much memory, print, and change their libraries' settings. Each tool runs
at its usual defaults.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spade_deploy.artifact import Arrays
from spade_deploy.bench.baselines import ncnn_files, remove_spectral_norm
from spade_deploy.bench.candidates import Kind
from spade_deploy.bench.inputs import SEGMAP, module_feeds
from spade_deploy.bench.job import read_arrays
from spade_deploy.engines.openvino.library import load_openvino
from spade_deploy.errors import ExportError, SpadeError
from spade_deploy.fields import from_json, to_json
from spade_deploy.files.atomic import write_json
from spade_deploy.files.reading import read_json
from spade_deploy.spec import GeneratorSpec

MODEL = "model.onnx"
"""The ONNX file in the folder of a conversion; OpenVINO's is model.xml."""


@dataclass(frozen=True)
class Conversion:
    """One conversion."""

    kind: Kind
    """The baseline that it is for."""

    spec: GeneratorSpec
    """How the generator is built."""

    checkpoint: Path
    """The trained generator."""

    plain: Path | None
    """The plain export, for conversions that begin with it."""

    cases: tuple[Path, ...]
    """.npz files of the graph's inputs: quantisers calibrate on them, and ncnn's conversion has their sizes."""

    target: Path
    """The folder that the files are written to."""

    def write(self, path: Path) -> None:
        write_json(path, to_json(self))

    @classmethod
    def read(cls, path: Path) -> Conversion:
        return from_json(cls, read_json(path), "conversion")


def main() -> int:
    """Convert what the file says. An error that is for people is the last line on stderr."""
    try:
        convert(Conversion.read(Path(sys.argv[1])))
    except SpadeError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


def convert(asked: Conversion) -> None:
    """Write the files of a conversion."""
    if asked.kind is Kind.PLAIN:
        from spade_deploy.bench.plain_export import write_plain_export

        write_plain_export(asked.checkpoint, asked.target / MODEL)
    elif asked.kind is Kind.PLAIN_INT8:
        quantize_with_onnxruntime(asked)
    elif asked.kind is Kind.OPENVINO_INT8:
        quantize_with_nncf(asked)
    else:
        convert_with_pnnx(asked)


def quantize_with_onnxruntime(asked: Conversion) -> None:
    """Static quantisation in the QDQ form, after the preprocessing that ONNX Runtime's documentation asks for.

    Of the latter the symbolic shape inference is left out: it refuses an export with open sizes.
    """
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Maps(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self._feeds = _feeds(asked)

        def get_next(self) -> Arrays | None:
            return next(self._feeds, None)

    prepared = asked.target / "prepared.onnx"
    quant_pre_process(str(asked.plain), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(asked.target / MODEL), Maps())
    prepared.unlink()


def quantize_with_nncf(asked: Conversion) -> None:
    """`nncf.quantize` on OpenVINO's model of the plain export, whose size is fixed."""
    openvino = load_openvino()
    nncf: Any = importlib.import_module("nncf")  # it has no types

    feeds = list(_feeds(asked))
    model = openvino.Core().read_model(str(asked.plain))
    model.reshape({name: list(array.shape) for name, array in feeds[0].items()})
    quantized = nncf.quantize(model, nncf.Dataset(feeds))
    openvino.save_model(quantized, str(asked.target / "model.xml"), compress_to_fp16=False)


def convert_with_pnnx(asked: Conversion) -> None:
    """Trace the module for each size and convert it with pnnx, with float32 weights: its default would be float16."""
    import torch

    from spade_deploy.export.onnx_file import quiet_export
    from spade_deploy.runs.checkpoint import load_generator

    pnnx: Any = importlib.import_module("pnnx")
    trace: Any = torch.jit.trace
    module = load_generator(asked.checkpoint).module.eval()
    remove_spectral_norm(module)
    for feeds in _feeds(asked):
        size = feeds[SEGMAP].shape[2:]
        param, weights = ncnn_files(asked.target, (size[0], size[1]))
        if param.exists():
            continue
        traced = param.with_name("traced.pt")
        inputs = tuple(torch.from_numpy(array[:1]) for array in feeds.values())
        with torch.inference_mode(), quiet_export():
            trace(module, inputs).save(str(traced))
        shapes = ",".join(f"[{','.join(map(str, tensor.shape))}]" for tensor in inputs)
        names = {"ncnnparam": param.name, "ncnnbin": weights.name}
        others = {f"pnnx{end}": f"pnnx.{end}" for end in ("param", "bin", "py", "onnx")} | {"ncnnpy": "pnnx.ncnn.py"}
        settings = [f"{name}={value}" for name, value in (names | others).items()]
        done = subprocess.run(
            [pnnx.EXEC_PATH, traced.name, f"inputshape={shapes}", "fp16=0", *settings],
            cwd=asked.target,
            capture_output=True,
            text=True,
            check=False,
        )
        for name in ("traced.pt", *others.values()):
            (asked.target / name).unlink(missing_ok=True)
        if not param.exists() or not weights.exists():
            raise ExportError(f"pnnx made no model (code {done.returncode}): {(done.stderr or done.stdout)[-200:]}")


def _feeds(asked: Conversion) -> Iterator[dict[str, Any]]:
    for path in asked.cases:
        yield module_feeds(asked.spec, read_arrays(path))


if __name__ == "__main__":
    sys.exit(main())
