"""Explains the messages of ONNX Runtime's GPU providers when they fail, in an error or in the log."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from spade_deploy.engines.cuda.driver import find_gpus
from spade_deploy.errors import RuntimeUnavailableError, SpadeError, line_of

PROBE_MODEL = base64.b64decode(
    "CAg6OwoQCgF4EgF5IghJZGVudGl0eRIFcHJvYmVaDwoBeBIKCggIARIECgIIAWIPCgF5EgoKCAgBEgQKAggBQgQKABAN"
)
"""y = Identity(x), one float32: the smallest model, with which a provider's loading is tried.
tests/engines/ort/test_runtime.py makes it."""


@dataclass(frozen=True)
class Explanation:
    """What a provider's message means, and what to do."""

    sentence: str
    """What went wrong, to stand behind a colon."""
    hint: str
    """What the user can do about it."""


_SMALLER = "a smaller `batch_size` or `size` needs less; `nvidia-smi` shows which programs use memory"
_INSTALL_CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]' brings the versions that it needs"
_MISSING_LIBRARY = (
    r"([\w+.-]+\.so(?:\.\d+)*): cannot open shared object file",
    r'depends on "([^"]+)" which is missing',
)
_OUT_OF_MEMORY = (
    r"Failed to allocate memory for requested buffer of size (?P<bytes>\d+)",
    r"Available memory of \d+ is smaller than requested bytes of (?P<bytes>\d+)",
    r"CUDA failure 2\b",
    r"(?:CUDNN|CUBLAS)_STATUS_ALLOC_FAILED",
    r"Error Code 2: OutOfMemory",
    r"Requested amount of GPU memory \((?P<bytes>\d+) bytes\) could not be allocated",
)
_EXPLANATIONS = {
    r"CUDA failure 35\b|CUDA driver version is insufficient": Explanation(
        "the NVIDIA driver is too old for the CUDA that this ONNX Runtime was built for",
        "install a newer driver (`spade doctor` says which CUDA it runs), or an onnxruntime-gpu of an older CUDA",
    ),
    r"CUDA failure 100\b|no CUDA-capable device": Explanation(
        "CUDA sees no GPU", "CUDA_VISIBLE_DEVICES may hide it; in a container, run it with --gpus all"
    ),
    r"CUDA failure 101\b|[Ii]nvalid device (?:ordinal|ID)": Explanation(
        "there is no GPU of that number", "`spade doctor` lists the GPUs; CUDA_VISIBLE_DEVICES counts them anew from 0"
    ),
    r"CUDA failure 209\b|no kernel image is available": Explanation(
        "this ONNX Runtime has no code for this GPU's compute capability",
        "pip install --upgrade onnxruntime-gpu; for a GPU older than it supports, an older one",
    ),
    r"CUDNN_STATUS_(?:SUBLIBRARY_)?VERSION_MISMATCH": Explanation(
        "cuDNN's libraries are of different versions", f"{_INSTALL_CUDA}; remove other copies from LD_LIBRARY_PATH"
    ),
}
_LARGEST_CREDIBLE = 1 << 44  # 16 TiB: a larger size comes from an overflow and is not shown


def explain(message: str) -> Explanation | None:
    """One clear sentence for what a GPU provider said in an error or its log; None for a message that is not known."""
    for pattern in _MISSING_LIBRARY:
        if match := re.search(pattern, message):
            return _explain_missing(match[1])
    for pattern in _OUT_OF_MEMORY:
        if match := re.search(pattern, message):
            size = int(match.groupdict().get("bytes") or 0)
            more = f": {size / (1 << 20):.0f} MiB more were asked for" if 0 < size < _LARGEST_CREDIBLE else ""
            return Explanation(f"the GPU's memory ran out{more}", _SMALLER)
    return next((meaning for pattern, meaning in _EXPLANATIONS.items() if re.search(pattern, message)), None)


def _explain_missing(library: str) -> Explanation:
    if re.match(r"(lib)?nv(infer|onnxparser)", library):
        numbers = re.findall(r"\d+", library)
        major = f" {numbers[-1]}" if numbers else ""
        newer = f">={numbers[-1]},<{int(numbers[-1]) + 1}" if numbers else ""
        return Explanation(
            f"TensorRT{major} is missing: {library} cannot be loaded",
            f"pip install 'tensorrt{newer}', or put the folder of {library} on LD_LIBRARY_PATH",
        )
    product = "cuDNN" if "cudnn" in library else "a CUDA library"
    return Explanation(f"{product} is missing: {library} cannot be loaded", _INSTALL_CUDA)


_COLOUR = re.compile(r"\x1b\[[\d;]*m")

_PROBE_SCRIPT = """
import base64, sys
import onnxruntime
if hasattr(onnxruntime, "preload_dlls"):
    onnxruntime.preload_dlls(directory="")
model = base64.b64decode(sys.argv[2])
onnxruntime.InferenceSession(model, providers=[sys.argv[1]], enable_fallback=0)
"""


def loading_error(provider: str, run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> str:
    """What ONNX Runtime says when a provider does not load.

    ONNX Runtime writes the reason to its log and goes on without the provider. So it is tried in a process of its own:
    that log can be read without touching this process's output, and a crash there cannot take this process down.
    """
    arguments = [sys.executable, "-P", "-c", _PROBE_SCRIPT, provider, base64.b64encode(PROBE_MODEL).decode()]
    try:
        done = run(arguments, capture_output=True, text=True, timeout=120, check=False, errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        return f"it could not be asked why: {error}"
    if done.returncode < 0:
        return f"the process that tried it was ended by signal {-done.returncode}"
    # stdout lists the libraries that could not be loaded beforehand, which is a clue if the log is empty.
    return _COLOUR.sub("", done.stderr).strip() or done.stdout.strip()


def why_it_does_not_load(ort: ModuleType, provider: str) -> SpadeError:
    """The error for a provider that was asked for and does not load, with the reason as far as it can be found."""
    available = ort.get_available_providers()
    if provider not in available:
        return unavailable(provider, f"this installation has {', '.join(available)}")
    try:
        if not find_gpus():
            return unavailable(provider, "the NVIDIA driver is here, but sees no GPU")
    except RuntimeUnavailableError as error:  # no driver: ONNX Runtime's own reason would be a consequence of it
        return RuntimeUnavailableError(f"{_does_not_load(provider)}: {error.message}", hint=error.hint)
    return unavailable(provider, loading_error(provider))


def unavailable(provider: str, said: str) -> SpadeError:
    """The error for a provider that does not load. said: a reason in words, or the log of ONNX Runtime."""
    meaning = explain(said)
    if meaning is not None:
        return RuntimeUnavailableError(f"{_does_not_load(provider)}: {meaning.sentence}", hint=meaning.hint)
    return RuntimeUnavailableError(
        f"{_does_not_load(provider)}: {line_of(said, last=True) or 'it gave no reason'}",
        hint="`spade doctor` says what is missing; `backend` cpu runs without it",
    )


def _does_not_load(provider: str) -> str:
    return f"ONNX Runtime's {provider} does not load here"
