"""The checks of `spade doctor`: what is installed, what really loads, and how to install what is missing.

Nothing here imports a heavy package: the installed metadata says what is there. Only ONNX Runtime is really run, since
its list of providers says only what it was built with, and OpenVINO, which knows what this CPU computes fast. The GPU
is found through the driver's own library.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from spade_deploy.engines.cuda.driver import find_gpus
from spade_deploy.engines.openvino import library as openvino
from spade_deploy.engines.ort import session as ort
from spade_deploy.errors import RuntimeUnavailableError, SpadeError
from spade_deploy.machine.cores import usable_cores
from spade_deploy.version import __version__

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
"""The oldest Python that this package runs on, and the newest that it is tested on."""
LOW_DISK_BYTES = 1_000_000_000


class Status(StrEnum):
    """How a check went. `missing` is no fault: something could be installed. A `problem` breaks something."""

    GOOD = "good"
    MISSING = "missing"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis."""

    status: Status
    """How the check went."""
    name: str
    """What was looked at."""
    value: str
    """What was found."""
    advice: str = ""
    """What to type or to do; empty where nothing need be done."""


# Distribution -> its purpose and extra. torch, onnxruntime and the GPU packages have checks of their own.
_NEEDED = ("filelock", "numpy", "pillow", "pyyaml", "typer", "rich")
_PACKAGES = {
    "safetensors": ("training and export", "export"),
    "matplotlib": ("loss plots", "train"),
    "psutil": ("memory, in training and bench", "cpu"),
    "imageio-ffmpeg": ("MP4 files of a run's samples", "video"),
    "fsspec": ("label maps and photos behind URLs", "cloud"),
    "s3fs": ("label maps and photos in S3", "cloud"),
    "pyarrow": ("Parquet files of spade infer", "parquet"),
    "tensorboard": ("spade train --tensorboard", "tensorboard"),
    "onnx": ("export", "export"),
    "onnxscript": ("export", "export"),
    "onnx-ir": ("export", "export"),
    "jinja2": ("export", "export"),
    "nncf": ("the baseline int8 of OpenVINO", "peers"),
    "ncnn": ("the baseline ncnn", "peers"),
    "pnnx": ("the baseline ncnn", "peers"),
    "fastapi": ("spade serve", "serve"),
    "uvicorn": ("spade serve", "serve"),
    "httptools": ("the HTTP of spade serve", "serve"),
    "isal": ("PNG files in a quarter of the time", "serve"),
    "websockets": ("the live preview of spade serve", "serve"),
    "python-multipart": ("forms that spade serve is sent", "serve"),
    "prometheus-client": ("the figures of spade serve", "serve"),
    "huggingface-hub": ("spade export --push-to-hub", "hub"),
    "ray": ("spade infer --ray, spade train --ray", "ray"),
    "torchmetrics": ("spade eval with LPIPS", "lpips"),
}
_GPU_PACKAGES = {
    "tensorrt": ("TensorRT engines: spade build", "trt"),
    "tensorrt-rtx": ("TensorRT for RTX engines: spade build --target rtx", "rtx"),
    "tensorrt-lean": ("version-compatible TensorRT engines, without a builder", "trt-lean"),
    "cuda-core": ("the memory of TensorRT engines", "trt"),
    "cuda-bindings": ("the memory of TensorRT engines", "trt"),
}
_ALIASES = {
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
    "tensorrt-lean": ("tensorrt-lean", "tensorrt-lean-cu12", "tensorrt-lean-cu13"),
    "tensorrt-dispatch": ("tensorrt-dispatch", "tensorrt-dispatch-cu12", "tensorrt-dispatch-cu13"),
}
"""For a distribution, others that bring the same package."""


def diagnose(folder: Path | None = None) -> tuple[Check, ...]:
    """Look at this machine; `folder` is where free disk space is asked for, the current one by default."""
    gpu = _check_gpu()
    has_gpu = gpu.status is Status.GOOD
    return (
        _check_python(),
        Check(Status.GOOD, "spade-deploy", f"{__version__} ({Path(__file__).parent})"),
        *(_check_needed(name) for name in _NEEDED),
        _check_torch(has_gpu),
        *(_check_package(name, purpose, extra) for name, (purpose, extra) in _PACKAGES.items()),
        *_check_onnxruntime(has_gpu),
        *_check_openvino(),
        gpu,
        *(
            _check_package(name, purpose, extra)
            for name, (purpose, extra) in _GPU_PACKAGES.items()
            if name != "tensorrt-lean" or not _found("tensorrt-lean")
        ),
        *_check_runtimes(),
        *_check_pycuda(),
        Check(Status.GOOD, "CPU cores", str(usable_cores())),
        _check_disk(folder or Path.cwd()),
    )


def _check_python(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    here = f"{platform.python_version()} ({sys.executable})"
    oldest, newest = (".".join(map(str, bound)) for bound in (OLDEST_PYTHON, NEWEST_PYTHON))
    if version < OLDEST_PYTHON:
        return Check(Status.PROBLEM, "Python", here, f"spade-deploy needs {oldest} or newer: make a new environment")
    if version > NEWEST_PYTHON:
        advice = f"tested on {oldest} to {newest}; packages may be missing for newer ones"
        return Check(Status.GOOD, "Python", here, advice)
    return Check(Status.GOOD, "Python", f"{here}, supported")


def _check_needed(name: str) -> Check:
    if found := _version(name):
        return Check(Status.GOOD, name, found)
    return Check(Status.PROBLEM, name, "not installed", "pip install --force-reinstall spade-deploy")


def _check_package(name: str, purpose: str, extra: str) -> Check:
    if found := _found(name):
        return Check(Status.GOOD, name, found)
    return Check(Status.MISSING, name, "not installed", f"for {purpose}: pip install 'spade-deploy[{extra}]'")


def _check_torch(has_gpu: bool) -> Check:
    found = _version("torch")
    if found is None:
        return _check_package("torch", "training and export", "train,export")
    number = _torch_build() or found
    _, _, build = number.partition("+")
    if match := re.fullmatch(r"cu(\d+)(\d)", build):
        return Check(Status.GOOD, "torch", f"{number}, built for CUDA {match[1]}.{match[2]}")
    if build != "cpu":
        return Check(Status.GOOD, "torch", number)  # ROCm, macOS, or a build of one's own
    advice = "to train on the GPU: install a CUDA build, see https://pytorch.org/get-started/locally/"
    return Check(Status.GOOD, "torch", f"{number}, built for the CPU alone", advice if has_gpu else "")


def _torch_build() -> str | None:
    """torch's own version text, which names the build where the metadata of its wheel may not: '2.13.0+cu130'.

    Read from its file: importing torch takes seconds.
    """
    try:
        text = Path(str(distribution("torch").locate_file("torch/version.py"))).read_text("utf-8")
    except (PackageNotFoundError, OSError, ValueError):
        return None
    match = re.search(r"^__version__ *(?:: *str *)?= *['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def _found(name: str) -> str | None:
    """The version of a distribution, or of another that brings the same package."""
    return next((number for alias in _ALIASES.get(name, (name,)) if (number := _version(alias))), None)


def _check_runtimes() -> tuple[Check, ...]:
    """TensorRT's runtimes that build nothing, where they are installed: they run version-compatible engines."""
    checks: list[Check] = []
    before = "tensorrt" if _found("tensorrt") else None
    for name in ("tensorrt-lean", "tensorrt-dispatch"):
        if number := _found(name):
            use = f"{before} is taken first" if before else "runs version-compatible engines, and builds none"
            checks.append(Check(Status.GOOD, name, f"{number} ({use})"))
            before = before or name
    return tuple(checks)


def _check_pycuda() -> tuple[Check, ...]:
    """pycuda manages the memory of TensorRT engines where cuda-core is not there. Without it there is no line."""
    found = _version("pycuda")
    if not found:
        return ()
    has_cuda_core = _version("cuda-core") is not None
    use = "cuda-core is taken first" if has_cuda_core else "manages the memory of TensorRT engines"
    return (Check(Status.GOOD, "pycuda", f"{found} ({use})"),)


def _check_onnxruntime(has_gpu: bool) -> tuple[Check, ...]:
    cpu, gpu = _version("onnxruntime"), _version("onnxruntime-gpu")
    if not cpu and not gpu:
        advice = "for infer and validate: pip install 'spade-deploy[cpu]' (or [gpu])"
        return (Check(Status.MISSING, "onnxruntime", "not installed", advice),)
    checks = []
    if cpu and gpu:
        # Both unpack into the folder `onnxruntime`: whichever came last wins, and CUDA may be gone.
        advice = "pip uninstall -y onnxruntime onnxruntime-gpu; pip install 'spade-deploy[gpu]' (or [cpu])"
        both = f"onnxruntime {cpu} and onnxruntime-gpu {gpu} overwrite each other's files"
        checks.append(Check(Status.PROBLEM, "onnxruntime", both, advice))
    else:
        checks.append(Check(Status.GOOD, "onnxruntime" if cpu else "onnxruntime-gpu", str(cpu or gpu)))
    for provider, label in ((ort.CPU, "ONNX Runtime on the CPU"), (ort.CUDA, "ONNX Runtime on CUDA")):
        try:
            loads = ort.provider_loads(provider)
        except SpadeError as error:
            return (*checks, Check(Status.PROBLEM, label, str(error), error.hint or ""))
        except Exception as error:  # a broken installation raises anything on import; the diagnosis goes on
            value = f"cannot be imported: {type(error).__name__}: {error}"
            return (*checks, Check(Status.PROBLEM, label, value, _REINSTALL))
        if provider == ort.CPU:
            checks.append(_cpu_check(label, loads))
        else:
            checks.append(_cuda_check(label, loads, has_gpu_build=bool(gpu), has_gpu=has_gpu))
    return tuple(checks)


def _check_openvino() -> tuple[Check, ...]:
    """Two lines: the package, and whether bf16 runs here."""
    label, found = "bf16 in OpenVINO", _version("openvino")
    if found is None:
        return (_check_package("openvino", "graphs on the CPU, in bf16 where it has that", "openvino"),)
    try:
        listed, has_bf16 = sorted(openvino.capabilities()), openvino.has_bf16()
    except SpadeError as error:
        return (Check(Status.PROBLEM, "openvino", f"{found}: {error.message}", error.hint or ""),)
    except Exception as error:  # a broken installation raises anything; the diagnosis goes on
        value = f"{found} cannot be run: {type(error).__name__}: {error}"
        return (Check(Status.PROBLEM, "openvino", value, "pip install --force-reinstall openvino"),)
    version = Check(Status.GOOD, "openvino", found)
    if not has_bf16:
        return version, Check(Status.MISSING, label, f"this CPU has none; OpenVINO lists {', '.join(listed)}")
    by = ", ".join(openvino.bf16_instructions()) or "instructions that only OpenVINO names"
    return version, Check(
        Status.GOOD, label, f"this CPU has it: {by}", "spade infer --backend openvino --precision bf16"
    )


_REINSTALL = "pip install --force-reinstall onnxruntime"


def _cpu_check(label: str, loads: bool) -> Check:
    return Check(Status.GOOD, label, "loads") if loads else Check(Status.PROBLEM, label, "does not load", _REINSTALL)


def _cuda_check(label: str, loads: bool, *, has_gpu_build: bool, has_gpu: bool) -> Check:
    """Check CUDA in ONNX Runtime. It is a problem only if there is a GPU and the GPU build does not load."""
    if loads:
        return Check(Status.GOOD, label, "loads")
    if has_gpu_build and has_gpu:
        advice = "CUDA and cuDNN of the right versions: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        return Check(Status.PROBLEM, label, "is installed and does not load", advice)
    if has_gpu_build:
        return Check(
            Status.MISSING, label, "is installed and does not load: there is no GPU", "the CPU is used instead"
        )
    # The other way round, pip would leave both builds, which overwrite each other.
    install = "pip uninstall -y onnxruntime; pip install 'spade-deploy[gpu]'"
    advice = f"to use the GPU: {install}" if has_gpu else f"with an NVIDIA GPU: {install}"
    return Check(Status.MISSING, label, "is not in this build", advice)


def _check_gpu() -> Check:
    try:
        found = find_gpus()
    except RuntimeUnavailableError as error:
        return Check(Status.MISSING, "NVIDIA GPU", f"no driver here ({error.__cause__ or error.message})")
    if not found:
        return Check(Status.MISSING, "NVIDIA GPU", "the driver is installed, but sees no GPU")
    return Check(Status.GOOD, "NVIDIA GPU", ", ".join(f"{gpu.name} (CUDA up to {gpu.driver_cuda})" for gpu in found))


def _check_disk(folder: Path) -> Check:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(Status.MISSING, "free disk", f"{folder} cannot be looked at: {error.strerror}")
    value = f"{free / 1e9:.1f} GB at {folder}"
    if free < LOW_DISK_BYTES:
        advice = "a full-size model's checkpoint takes over a gigabyte: free some"
        return Check(Status.MISSING, "free disk", value, advice)
    return Check(Status.GOOD, "free disk", value)


def _version(name: str) -> str | None:
    try:
        return version(name) or None  # None already where the metadata is damaged
    except (PackageNotFoundError, KeyError):
        return None
