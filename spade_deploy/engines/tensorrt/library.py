"""Import TensorRT or TensorRT for RTX when it is needed, and never where the import would crash the process."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from spade_deploy.engines.cuda.driver import require_gpu
from spade_deploy.engines.tensorrt.key import Edition
from spade_deploy.errors import MissingDependencyError, RuntimeUnavailableError, line_of, reason_of
from spade_deploy.spec import Flavour

MODULES = {Flavour.TENSORRT: "tensorrt", Flavour.RTX: "tensorrt_rtx"}
RUNTIMES = {Edition.LEAN: "tensorrt_lean", Edition.DISPATCH: "tensorrt_dispatch"}
"""The modules of TensorRT's runtimes that build nothing, in the order in which they are tried after the whole."""
EXTRAS = {Flavour.TENSORRT: "trt", Flavour.RTX: "rtx"}
RUNTIME_EXTRA = "trt-lean"
OLDEST = {Flavour.TENSORRT: (10, 0), Flavour.RTX: (1, 1)}
NO_REASON = "it gave no reason"
_KEPT_ERRORS = 10
TITLES = {Flavour.TENSORRT: "TensorRT", Flavour.RTX: "TensorRT for RTX"}


@dataclass(frozen=True)
class Library:
    """An imported TensorRT."""

    module: ModuleType
    """Its Python bindings."""
    flavour: Flavour
    """TensorRT, or TensorRT for RTX."""
    version: str
    """The version that the bindings report."""
    edition: Edition = Edition.WHOLE
    """Whether it is the whole, or a runtime that builds nothing."""

    @property
    def title(self) -> str:
        """Name and version for people: 'TensorRT for RTX 1.7.1.116', 'TensorRT lean runtime 11.4.0.106'."""
        return f"{_title(self.flavour, self.edition)} {self.version}"


def load_library(
    flavour: Flavour | None = None, *, to_run: bool = False, gpu: Callable[[], object] = require_gpu
) -> Library:
    """Import TensorRT of a flavour; None takes TensorRT where it is installed, else TensorRT for RTX.

    to_run: nothing is built, so that TensorRT's lean or dispatch runtime will do where the whole is not installed.
    TensorRT's builder needs a GPU, and the process dies where its runtime finds no driver: the driver is asked first.
    TensorRT for RTX builds without one. Raises MissingDependencyError, RuntimeUnavailableError.
    """
    if flavour is None:
        installed = [known for known in Flavour if is_installed(known, to_run=to_run)]
        if not installed:
            _refuse_to_build()
            raise MissingDependencyError(
                "neither TensorRT nor TensorRT for RTX is installed",
                hint="data-centre cards and Jetson: pip install 'spade-deploy[trt]'; RTX cards, or to build for them"
                " on a machine without a GPU: pip install 'spade-deploy[rtx]'",
            )
        flavour = installed[0]
    edition = Edition.WHOLE
    if not is_installed(flavour):
        found = _runtime_alone() if flavour is Flavour.TENSORRT else None
        if found is None:
            raise MissingDependencyError(
                f"{TITLES[flavour]} is not installed",
                hint=f"pip install 'spade-deploy[{EXTRAS[flavour]}]'; docs/tensorrt.md has more",
            )
        if not to_run:
            _refuse_to_build()
        edition = found
    name = MODULES[flavour] if edition is Edition.WHOLE else RUNTIMES[edition]
    title, extra = _title(flavour, edition), EXTRAS[flavour] if edition is Edition.WHOLE else RUNTIME_EXTRA
    if flavour is Flavour.TENSORRT:
        gpu()
    try:
        module = _import_lazily_bound(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise RuntimeUnavailableError(
            f"{title} is installed but does not load: {reason_of(error)}",
            hint="its libraries must be of the CUDA version that the driver runs: `spade doctor` has both",
        ) from error
    version = str(module.__version__)
    oldest = OLDEST[flavour]
    if tuple(int(part) for part in version.split(".")[:2]) < oldest:
        newer = f"{title} {'.'.join(map(str, oldest))} or newer"
        raise RuntimeUnavailableError(
            f"{title} {version} is too old: its networks are not strongly typed as ours are",
            hint=f"{newer}: pip install --upgrade 'spade-deploy[{extra}]'",
        )
    return Library(module, flavour, version, edition)


def make_messages(trt: Any) -> Any:
    """A logger that keeps TensorRT's errors instead of printing them. Its base class is that of the given TensorRT."""

    class Messages(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR and len(self.errors) < _KEPT_ERRORS:
                self.errors.append(str(message).strip())

        def take(self) -> str:
            """The first error since the last call, as later errors follow from it; empty if there was none."""
            errors, self.errors = self.errors, []
            return line_of(errors[0]) if errors else ""

    return Messages()


def make_runtime(library: Library, messages: Any, *, version_compatible: bool) -> Any:
    """The object of TensorRT that loads engines.

    version_compatible: a version-compatible engine holds a TensorRT runtime of its own, code that this process runs.
    TensorRT loads no such engine unless it is told that this code is allowed, and it is told so for these alone.
    """
    runtime: Any = library.module.Runtime(messages)
    if version_compatible:
        runtime.engine_host_code_allowed = True
    return runtime


def is_installed(flavour: Flavour, *, to_run: bool = False) -> bool:
    """Whether the bindings are installed; nothing is imported. to_run: a runtime that builds nothing will do."""
    return _is_there(MODULES[flavour]) or (to_run and flavour is Flavour.TENSORRT and _runtime_alone() is not None)


def _runtime_alone() -> Edition | None:
    """The first of TensorRT's runtimes without a builder that is installed."""
    return next((edition for edition, name in RUNTIMES.items() if _is_there(name)), None)


def _refuse_to_build() -> None:
    """Raise MissingDependencyError where a runtime is installed that could run engines, but builds none."""
    edition = _runtime_alone()
    if edition is not None:
        raise MissingDependencyError(
            f"of TensorRT only the {edition} runtime is installed, which builds no engines",
            hint=f"pip install 'spade-deploy[{EXTRAS[Flavour.TENSORRT]}]' installs all of TensorRT",
        )


def _title(flavour: Flavour, edition: Edition) -> str:
    return TITLES[flavour] if edition is Edition.WHOLE else f"{TITLES[flavour]} {edition} runtime"


def _is_there(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    return find_spec(name) is not None


def _import_lazily_bound(name: str) -> ModuleType:
    # With lazy binding a symbol is looked up when it is called, so libraries for unused plugins need not be complete.
    if not hasattr(sys, "setdlopenflags"):
        return importlib.import_module(name)
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_LAZY | ctypes.DEFAULT_MODE)
    try:
        return importlib.import_module(name)
    finally:
        sys.setdlopenflags(before)
