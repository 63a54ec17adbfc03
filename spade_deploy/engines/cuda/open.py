"""Which library makes the CUDA calls: cuda-core where it is installed, else pycuda."""

from __future__ import annotations

from collections.abc import Callable

from spade_deploy.engines.cuda.device import Device, DeviceLibrary
from spade_deploy.engines.cuda.driver import Gpu, require_gpu
from spade_deploy.errors import ConfigError, MissingDependencyError, SpadeError, reason_of


def open_device(
    index: int = 0, library: DeviceLibrary | str = DeviceLibrary.AUTO, *, find: Callable[[int], Gpu] = require_gpu
) -> Device:
    """GPU number `index` through one of the two libraries.

    Raises RuntimeUnavailableError where there is no such GPU, MissingDependencyError where there is no library.
    """
    if library not in list(DeviceLibrary):
        raise ConfigError(f"device library: {str(library)!r} is not one of {', '.join(DeviceLibrary)}")
    gpu = find(index)
    order = [DeviceLibrary.CUDA_CORE, DeviceLibrary.PYCUDA]
    wanted = order if library == DeviceLibrary.AUTO else [DeviceLibrary(library)]
    reasons: list[str] = []
    for name in wanted:
        try:
            return _open(name, gpu)
        except SpadeError:
            raise
        except Exception as error:  # an import that fails can raise anything: ImportError, OSError, RuntimeError
            reasons.append(f"{name}: {reason_of(error)}")
            last = error
    raise MissingDependencyError(
        f"nothing here can manage CUDA memory ({'; '.join(reasons)})",
        hint="pip install 'spade-deploy[trt]' (or [rtx]) brings cuda-core; pycuda does as well",
    ) from last


def _open(library: DeviceLibrary, gpu: Gpu) -> Device:
    if library is DeviceLibrary.CUDA_CORE:
        from spade_deploy.engines.cuda.cuda_core import CudaCoreDevice

        return CudaCoreDevice(gpu)
    from spade_deploy.engines.cuda.pycuda import PycudaDevice

    return PycudaDevice(gpu)
