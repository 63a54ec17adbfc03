import ctypes
import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spade_deploy.cli import app
from spade_deploy.engines.cuda.driver import Gpu, find_gpus
from spade_deploy.engines.openvino import library
from spade_deploy.engines.ort import session as ort
from spade_deploy.inspection import doctor
from spade_deploy.inspection.doctor import Check, Status, diagnose
from spade_deploy.version import __version__


def pretend_installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def version(name: str) -> str:
        if name in names:
            return "1.2.3"
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", version)


def by_name(checks: tuple[Check, ...]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def test_here(capfd: pytest.CaptureFixture[str]) -> None:
    checks = by_name(diagnose())
    assert checks["Python"].value.endswith(", supported")
    assert checks["spade-deploy"].value.startswith(f"{__version__} (")
    assert checks["ONNX Runtime on the CPU"] == Check(Status.GOOD, "ONNX Runtime on the CPU", "loads")
    assert checks["torch"].status is Status.GOOD
    assert int(checks["CPU cores"].value) >= 1
    assert not [check for check in checks.values() if check.status is Status.PROBLEM]
    assert capfd.readouterr() == ("", "")


def test_it_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from spade_deploy.inspection.doctor import diagnose; diagnose();"
        "print([name for name in ('torch', 'onnx', 'tensorrt', 'pycuda', 'matplotlib') if name in sys.modules])"
    )
    seconds = []
    for _ in range(3):
        before = os.times()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        after = os.times()
        seconds.append(sum(after[2:4]) - sum(before[2:4]))  # of its own work: a busy machine makes it wait, not work
        assert done.stdout.strip() == "[]"
    # Measured 0.3 to 0.45 s with the start of the interpreter; importing PyTorch alone takes 2.
    assert min(seconds) < 1.5


@pytest.mark.parametrize(
    ("version", "status", "text"),
    [
        ((3, 10), Status.PROBLEM, "needs 3.11 or newer"),
        ((3, 11), Status.GOOD, ", supported"),
        ((3, 13), Status.GOOD, ", supported"),
        ((3, 14), Status.GOOD, "tested on 3.11 to 3.13"),
    ],
)
def test_python(version: tuple[int, int], status: Status, text: str) -> None:
    check = doctor._check_python(version)
    assert check.status is status
    assert text in check.value + check.advice


def test_what_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, *doctor._NEEDED, "onnxruntime")
    checks = by_name(diagnose())
    for name, extra in (
        ("torch", "train,export"),
        ("onnx", "export"),
        ("matplotlib", "train"),
        ("tensorrt", "trt"),
        ("openvino", "openvino"),
    ):
        assert checks[name].status is Status.MISSING
        assert f"pip install 'spade-deploy[{extra}]'" in checks[name].advice
    assert not [check for check in checks.values() if check.status is Status.PROBLEM]
    assert "pycuda" not in checks


@pytest.mark.parametrize(
    ("others", "use"),
    [((), "manages the memory of TensorRT engines"), (("cuda-core",), "cuda-core is taken first")],
)
def test_pycuda_is_said_to_be_used(monkeypatch: pytest.MonkeyPatch, others: tuple[str, ...], use: str) -> None:
    """engines/cuda/open.py takes it where cuda-core is not there."""
    pretend_installed(monkeypatch, *doctor._NEEDED, "onnxruntime", "pycuda", *others)
    assert by_name(diagnose())["pycuda"] == Check(Status.GOOD, "pycuda", f"1.2.3 ({use})")


@pytest.mark.parametrize(
    ("there", "uses"),
    [
        (("tensorrt-lean-cu13",), {"tensorrt-lean": "runs version-compatible engines, and builds none"}),
        (
            ("tensorrt-lean", "tensorrt-dispatch-cu12"),
            {
                "tensorrt-lean": "runs version-compatible engines, and builds none",
                "tensorrt-dispatch": "tensorrt-lean is taken first",
            },
        ),
        (("tensorrt-cu13", "tensorrt-lean"), {"tensorrt-lean": "tensorrt is taken first"}),
    ],
)
def test_runtimes_that_build_nothing_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], uses: dict[str, str]
) -> None:
    """The order is that of engines/tensorrt/library.py."""
    pretend_installed(monkeypatch, *doctor._NEEDED, "onnxruntime", *there)
    checks = by_name(diagnose())
    for name, use in uses.items():
        assert checks[name] == Check(Status.GOOD, name, f"1.2.3 ({use})")
    assert ("tensorrt-dispatch" in checks) == ("tensorrt-dispatch" in uses)
    pretend_installed(monkeypatch, *doctor._NEEDED, "onnxruntime")
    missing = by_name(diagnose())["tensorrt-lean"]
    assert missing.status is Status.MISSING
    assert "pip install 'spade-deploy[trt-lean]'" in missing.advice


def test_every_package_of_every_extra_is_looked_for() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = {
        extra: {re.split(r"[\[><=]", requirement)[0] for requirement in wanted}
        for extra, wanted in project["optional-dependencies"].items()
        if extra not in ("dev", "docs")  # for who works on this package
    }
    told = {**doctor._PACKAGES, **doctor._GPU_PACKAGES}
    for name, (_, extra) in told.items():
        assert name in extras[extra], "the extra that is named does not bring it"
    assert set.union(*extras.values()) == {*told, "torch", "onnxruntime", "onnxruntime-gpu", "openvino"}
    assert {re.split("[><=]", requirement)[0] for requirement in project["dependencies"]} == set(doctor._NEEDED)


@pytest.mark.parametrize("has_it", [True, False])
def test_whether_bf16_runs_and_by_what(monkeypatch: pytest.MonkeyPatch, has_it: bool) -> None:
    listed = {"FP32", "INT8"} | ({"BF16"} if has_it else set())
    monkeypatch.setattr(library, "capabilities", lambda: frozenset(listed))
    monkeypatch.setattr(library, "all_instruction_sets", lambda: ("amx_bf16", "avx512_bf16", "fpu"))
    package, bf16 = doctor._check_openvino()
    assert (package.status, package.name) == (Status.GOOD, "openvino")
    if has_it:
        assert bf16.value == "this CPU has it: amx_bf16, avx512_bf16"
        assert bf16.advice == "spade infer --backend openvino --precision bf16"
    else:
        assert bf16 == Check(Status.MISSING, "bf16 in OpenVINO", "this CPU has none; OpenVINO lists FP32, INT8")


def test_an_openvino_that_does_not_run_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(library, "capabilities", fail)
    (check,) = doctor._check_openvino()
    assert check.status is Status.PROBLEM
    assert "cannot be run: OSError: libtbb.so.12" in check.value
    assert check.advice == "pip install --force-reinstall openvino"


def test_the_python_that_is_supported_is_the_one_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    oldest, newest = (".".join(map(str, bound)) for bound in (doctor.OLDEST_PYTHON, doctor.NEWEST_PYTHON))
    assert project["requires-python"] == f">={oldest}"
    listed = [entry.rpartition(" ")[2] for entry in project["classifiers"] if ":: Python :: 3." in entry]
    assert (listed[0], listed[-1]) == (oldest, newest)


# --- PyTorch's build -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("2.13.0+cpu", "2.13.0+cpu, built for the CPU alone"),
        ("2.13.0+cu130", "2.13.0+cu130, built for CUDA 13.0"),
        ("2.6.0+cu118", "2.6.0+cu118, built for CUDA 11.8"),
        ("2.13.0+rocm6.4", "2.13.0+rocm6.4"),
        ("2.13.0", "2.13.0"),
    ],
)
@pytest.mark.parametrize("has_gpu", [False, True])
def test_what_torch_was_built_for(monkeypatch: pytest.MonkeyPatch, number: str, value: str, has_gpu: bool) -> None:
    monkeypatch.setattr(doctor, "version", lambda _: number.partition("+")[0])
    monkeypatch.setattr(doctor, "_torch_build", lambda: number)
    check = doctor._check_torch(has_gpu)
    assert (check.status, check.value) == (Status.GOOD, value)
    assert ("CUDA build" in check.advice) == (has_gpu and number.endswith("+cpu"))


def test_the_build_is_read_from_torch_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    assert doctor._torch_build() == torch.__version__
    monkeypatch.setattr(doctor, "distribution", lambda _: types.SimpleNamespace(locate_file=tmp_path.joinpath))
    assert doctor._torch_build() is None
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text("__version__: str = '2.13.0+cu130'\ncuda = '13.0'\n")
    assert doctor._torch_build() == "2.13.0+cu130"
    (tmp_path / "torch" / "version.py").write_bytes(b"\xff")
    assert doctor._torch_build() is None


# --- What the package cannot do without, and ONNX Runtime ------------------------------------------------------------


def test_a_package_that_everything_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "pillow")
    checks = by_name(diagnose())
    assert checks["numpy"].status is Status.PROBLEM
    assert checks["pillow"] == Check(Status.GOOD, "pillow", "1.2.3")


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "numpy")
    monkeypatch.setattr(ort, "provider_loads", lambda _: pytest.fail("there is nothing to ask"))
    check = by_name(diagnose())["onnxruntime"]
    assert check.status is Status.MISSING
    assert "'spade-deploy[cpu]'" in check.advice


def test_both_builds_of_onnxruntime_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    check = by_name(diagnose())["onnxruntime"]
    assert check.status is Status.PROBLEM
    assert "overwrite each other's files" in check.value
    assert "pip uninstall" in check.advice


@pytest.mark.parametrize(
    ("package", "has_gpu", "status", "advice"),
    [
        ("onnxruntime-gpu", True, Status.PROBLEM, "CUDA and cuDNN of the right versions"),
        ("onnxruntime-gpu", False, Status.MISSING, "the CPU is used instead"),
        ("onnxruntime", True, Status.MISSING, "to use the GPU: pip uninstall -y onnxruntime; pip install"),
        ("onnxruntime", False, Status.MISSING, "with an NVIDIA GPU: pip uninstall -y onnxruntime; pip install"),
    ],
)
def test_cuda_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch, package: str, has_gpu: bool, status: Status, advice: str
) -> None:
    pretend_installed(monkeypatch, package)
    monkeypatch.setattr(ort, "provider_loads", lambda provider: provider == ort.CPU)
    monkeypatch.setattr(
        doctor, "find_gpus", lambda: [Gpu(0, "NVIDIA H100", (9, 0), 80 << 30, "13.0")] if has_gpu else []
    )
    checks = by_name(diagnose())
    assert checks["ONNX Runtime on CUDA"].status is status
    assert advice in checks["ONNX Runtime on CUDA"].advice
    assert checks["ONNX Runtime on the CPU"].status is Status.GOOD


def test_cuda_that_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "onnxruntime-gpu")
    monkeypatch.setattr(ort, "provider_loads", lambda provider: True)
    assert by_name(diagnose())["ONNX Runtime on CUDA"].status is Status.GOOD


@pytest.mark.parametrize(
    "error", [AttributeError("_ARRAY_API not found"), ImportError("libcudart.so.13"), OSError("x")]
)
def test_a_broken_onnxruntime_never_ends_the_diagnosis(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def break_down(provider: str) -> bool:
        raise error

    pretend_installed(monkeypatch, "onnxruntime")
    monkeypatch.setattr(ort, "provider_loads", break_down)
    checks = by_name(diagnose())
    check = checks["ONNX Runtime on the CPU"]
    assert check.status is Status.PROBLEM
    assert str(error) in check.value
    assert "free disk" in checks


def test_an_onnxruntime_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "onnxruntime")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check = by_name(diagnose())["ONNX Runtime on the CPU"]
    assert check.status is Status.PROBLEM
    assert "cannot be imported" in check.value


def test_a_problem_is_seen_in_the_table_and_in_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts ask `spade doctor` by its exit code; what is only missing is no fault."""
    pretend_installed(monkeypatch, *doctor._NEEDED, "onnxruntime")
    missing = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert missing.exit_code == 0
    assert "!!" not in missing.output
    assert any(line.split()[:2] == ["--", "torch"] for line in missing.output.splitlines())
    pretend_installed(monkeypatch, *(name for name in doctor._NEEDED if name != "rich"), "onnxruntime")
    broken = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert broken.exit_code == 1
    lines = broken.output.splitlines()
    (at,) = (number for number, line in enumerate(lines) if line.lstrip().startswith("!!"))
    assert lines[at].split()[1] == "rich"
    assert lines[at + 1].strip() == "pip install --force-reinstall spade-deploy"


def test_an_onnxruntime_whose_cpu_provider_does_not_load_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "onnxruntime")
    monkeypatch.setattr(ort, "provider_loads", lambda _: False)
    check = by_name(diagnose())["ONNX Runtime on the CPU"]
    assert (check.status, check.value) == (Status.PROBLEM, "does not load")
    assert "pip install" in check.advice


# --- The driver's library, played by a stand-in ----------------------------------------------------------------------


class Driver:
    def __init__(self, init: int = 0, names: tuple[bytes, ...] = ()) -> None:
        self.init, self.names = init, names

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's names
        return self.init

    def cuDriverGetVersion(self, number: Any) -> int:  # noqa: N802
        number._obj.value = 12080
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, buffer: Any, length: int, device: ctypes.c_int) -> int:  # noqa: N802
        buffer.value = self.names[device.value]
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: ctypes.c_int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: ctypes.c_int) -> int:  # noqa: N802
        return 0


@pytest.mark.parametrize(
    ("driver", "status", "value"),
    [
        (Driver(names=(b"NVIDIA H100", b"NVIDIA T4")), Status.GOOD, "NVIDIA H100 (CUDA up to 12.8), NVIDIA T4"),
        (Driver(init=100), Status.MISSING, "sees no GPU"),
        (Driver(names=()), Status.MISSING, "sees no GPU"),
        (Driver(init=999), Status.MISSING, "cuInit fails with CUDA error 999"),
    ],
)
def test_the_gpu(monkeypatch: pytest.MonkeyPatch, driver: Driver, status: Status, value: str) -> None:
    monkeypatch.setattr(doctor, "find_gpus", lambda: find_gpus(lambda name: driver))  # type: ignore[arg-type, return-value]
    check = doctor._check_gpu()
    assert check.status is status
    assert value in check.value


@pytest.mark.parametrize("error", [OSError("libcuda.so.1: cannot open"), AttributeError("undefined symbol: cuInit")])
def test_without_a_driver(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def missing(name: str) -> Any:
        raise error

    monkeypatch.setattr(doctor, "find_gpus", lambda: find_gpus(missing))
    assert doctor._check_gpu() == Check(Status.MISSING, "NVIDIA GPU", f"no driver here ({error})")


# --- The machine -----------------------------------------------------------------------------------------------------


def test_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = types.SimpleNamespace(free=999_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check = doctor._check_disk(tmp_path)
    assert check.status is Status.MISSING, "a note: nothing is broken yet"
    assert "free some" in check.advice
    usage.free = 10**12
    assert doctor._check_disk(tmp_path) == Check(Status.GOOD, "free disk", f"1000.0 GB at {tmp_path}")


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    check = doctor._check_disk(tmp_path / "gone")
    assert check.status is Status.MISSING
    assert "cannot be looked at: No such file" in check.value
