"""benchmarks/gpu_check.py: everything of it that needs no GPU, and on a machine with one, all of it in small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from spade_deploy.engines.cuda.driver import Gpu, find_gpus
from spade_deploy.errors import BuildError, ConfigError, MissingDependencyError, RuntimeUnavailableError
from spade_deploy.export.pipeline import ExportRequest
from spade_deploy.spec import GraphKind, Precision, RoundingError
from tests.support import stand_in
from tests.support.bench_model import TINY, load_script, tiny_setting
from tests.support.paths import ROOT

check: Any = load_script("gpu_check")
records: Any = load_script("gpu.records")
timing: Any = load_script("gpu.timing")
report: Any = load_script("gpu.report")
setting: Any = load_script("gpu.setting")

CARD = Gpu(0, "NVIDIA H100 80GB HBM3", (9, 0), 80 << 30, "13.0")


# --- bookkeeping


def raising(error: Exception) -> Callable[[Any], None]:
    def step(book: Any) -> None:
        book.add(records.Row("before"))
        raise error

    return step


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (MissingDependencyError("no torch", hint="install it"), "skipped", "no torch"),
        (RuntimeUnavailableError("no driver"), "skipped", "no driver"),
        (ConfigError("impossible"), "failed", "impossible"),
        (ZeroDivisionError("division by zero"), "failed", "ZeroDivisionError: division by zero (test_gpu_check.py:"),
        (OSError(), "failed", "OSError: OSError ("),
    ],
)
def test_a_step_ends_in_its_outcome_and_keeps_what_it_had(error: Exception, status: str, reason: str) -> None:
    outcome = records.run_step(records.Book("torch"), raising(error))
    assert outcome.status == status
    assert outcome.reason.startswith(reason)
    assert [row.name for row in outcome.rows] == ["before"]
    assert outcome.hint == ("install it" if status == "skipped" and "torch" in reason else "")


def test_a_wrong_candidate_fails_its_step_and_right_ones_do_not() -> None:
    def step(failures: tuple[str, ...], book: Any) -> None:
        book.add(records.Row("good", 1))
        book.add(records.Row("other", 8, failures=failures))

    assert records.run_step(records.Book("torch"), partial(step, ())).status == "done"
    wrong = records.run_step(records.Book("torch"), partial(step, ("too far off",)))
    assert (wrong.status, wrong.reason) == ("failed", "1 of 2 failed; other: too far off")


def test_an_interruption_is_no_outcome() -> None:
    def step(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.run_step(records.Book("torch"), step)


def test_what_a_dead_process_had_found_is_read(tmp_path: Path) -> None:
    path = tmp_path / "torch.json"
    book = records.Book("torch", path)
    book.note("maps", "synthetic")
    book.add(records.Row("fp16 dense", 8, {"device_p50_ms": 1.5}, {"device": [1.5, 2.0]}, note="a note"))
    died = records.read_outcome("torch", path, "its process was ended by SIGSEGV: it said nothing")
    assert (died.status, died.reason) == ("failed", "its process was ended by SIGSEGV: it said nothing")
    assert died.rows == book.outcome.rows
    assert died.facts == {"maps": "synthetic"}
    book.finish(records.Status.DONE)
    assert records.read_outcome("torch", path, "").status == "done"
    path.write_text("{", encoding="utf-8")
    assert records.read_outcome("torch", path, "").reason == "its process ended without a result"
    assert records.read_outcome("torch", tmp_path / "none.json", "").status == "failed"


def test_how_a_process_died_is_said_in_words() -> None:
    assert check.how_it_died(0, "a warning") == ""
    assert check.how_it_died(-11, "") == "its process was ended by SIGSEGV: it said nothing"
    assert check.how_it_died(1, "first\nImportError: no\n") == "its process ended with code 1: ImportError: no"


# --- times


def test_candidates_are_timed_in_turns_and_one_that_fails_is_left_out() -> None:
    ran: list[str] = []

    def work(name: str) -> None:
        ran.append(name)
        if (name == "never", name == "later" and ran.count("later") > 3) != (False, False):
            raise MemoryError(name)

    clock = iter(range(1000))

    def timer(run: Callable[[], object]) -> float:
        run()
        return float(next(clock))

    works = {name: partial(work, name) for name in ("a", "never", "later", "b")}
    measured = timing.measure_interleaved(works, timer, rounds=3, warm_up=2)
    assert ran[:7] == ["a", "a", "never", "later", "later", "b", "b"]
    assert ran.count("a") == ran.count("b") == 5
    assert ran.count("never") == 1
    assert measured.failures == {"never": "MemoryError: never", "later": "MemoryError: later"}
    assert set(measured.times_ms) == {"a", "b"}
    assert all(len(times) == 3 for times in measured.times_ms.values())


def test_a_ratio_is_the_median_of_those_within_rounds() -> None:
    # A slow third round slows both sides; the ratio of the medians would be 3.
    assert timing.median_ratio([2.0, 6.0, 40.0], [1.0, 2.0, 20.0]) == 2.0
    assert timing.median_ratio([], [1.0]) is None
    assert timing.spread([], "device") == {}
    found = timing.spread([float(number) for number in range(1, 101)], "device")
    assert found == {"device_p50_ms": 50.5, "device_p90_ms": 91.0, "device_p99_ms": 100.0}


def test_the_wall_clock_waits_on_either_side() -> None:
    said: list[str] = []
    timer = timing.host_timer(lambda: said.append("wait"))
    assert timer(lambda: said.append("work")) >= 0
    assert said == ["wait", "work", "wait"]


def test_work_is_captured_after_it_has_run_and_on_a_stream_of_its_own() -> None:
    said: list[str] = []

    @contextmanager
    def inside(name: str) -> Iterator[None]:
        said.append(f"into {name}")
        try:
            yield
        finally:
            said.append(f"out of {name}")

    def work() -> int:
        said.append("work")
        return said.count("work")

    cuda = SimpleNamespace(
        Stream=lambda: "a stream",
        stream=inside,
        graph=lambda graph: inside(graph.name),
        CUDAGraph=lambda: SimpleNamespace(name="a graph", replay=lambda: said.append("replay")),
        synchronize=lambda: said.append("wait"),
    )
    replay, returned = timing.captured(SimpleNamespace(cuda=cuda), work)
    once = ["into a graph", "work", "out of a graph"]
    before = ["wait", "into a stream", "work", "work", "work", "wait"]
    assert said == [*before, *once, "out of a stream", "wait"]
    assert returned == 4  # what the captured run returned, whose memory a replay writes
    replay()
    assert said[-1] == "replay"


def test_a_replay_keeps_what_its_graph_reads() -> None:
    """A CUDA graph holds addresses. A module that nobody keeps is freed, and the graph reads what lies there next."""

    class Module:
        def __call__(self) -> str:
            return "an image"

    module = Module()
    known = weakref.ref(module)
    replay, returned = timing.captured(FakeTorch, module)
    del module
    assert (returned, known() is not None) == ("an image", True)
    replay()
    assert FakeTorch.cuda.replayed == 1
    del replay
    assert known() is None


class FakeTorch:
    """What `captured` asks of PyTorch."""

    class cuda:  # noqa: N801
        replayed = 0
        Stream = staticmethod(lambda: None)
        stream = staticmethod(lambda _: nullcontext())
        graph = staticmethod(lambda _: nullcontext())
        synchronize = staticmethod(lambda: None)

        class CUDAGraph:
            def replay(self) -> None:
                FakeTorch.cuda.replayed += 1


# --- the result


def outcomes(device_ms: float = 4.0, error: float = 1e-4) -> list[Any]:
    row, outcome, done = records.Row, records.Outcome, records.Status.DONE
    times = {"device_p50_ms": device_ms, "faster_than_eager": 8 / device_ms, "faster_than_plain_fp16": 5.2 / device_ms}
    return [
        outcome(
            "numerics",
            done,
            rows=[row("fp16 untouched", None, {"mean_abs": 1e-4}), row("fp16 dense", None, {"mean_abs": error})],
        ),
        outcome("onnxruntime", records.Status.SKIPPED, "CUDA does not load here", "pip install something"),
        outcome(
            "tensorrt",
            done,
            seconds=12.4,
            rows=[row("fp16 dense", 1, times), row("int8 dense", 1, failures=("not built",))],
        ),
        outcome("roofline", done, rows=[row("fp16 dense", 1, {"floor_ms": 2.0, "by_layer_ms": 2.5})]),
    ]


def test_goals_are_reached_missed_or_not_measured() -> None:
    def verdicts(found: list[Any]) -> list[bool | None]:
        return [goal.is_reached for goal in report.goals_of(found)]

    assert verdicts(outcomes()) == [True, True, True, True]
    assert verdicts(outcomes(error=2.1e-4)) == [False, True, True, True]
    assert verdicts(outcomes(device_ms=4.1)) == [True, False, False, True]
    assert verdicts(outcomes(device_ms=5.1)) == [True, False, False, False]
    assert verdicts(outcomes()[:3])[-1] is None
    assert verdicts([]) == []


def test_the_table_says_all_of_it() -> None:
    lines = report.table(outcomes()).splitlines()
    text = "\n".join(lines)
    assert "onnxruntime: skipped: CUDA does not load here\n  hint: pip install something" in text
    assert "tensorrt: done, 12 s" in text
    (engine,) = [line for line in lines if "fp16 dense, batch 1" in line and "eager" in line]
    assert "4.000 ms, 2.00 x floor, 2.00 x eager, 1.30 x plain" in engine
    assert any(line.startswith("  int8 dense, batch 1") and line.endswith("FAILED: not built") for line in lines)
    assert "  fp16 dense engine: over its floor, times, batch 1: 2.00, at most 2.5: reached" in lines
    assert "MISSED" not in text
    assert "MISSED" in report.table(outcomes(device_ms=9))


def test_the_result_is_json_and_comes_back() -> None:
    machine, asked = {"gpu": "a card"}, {"quick": False}
    value = json.loads(json.dumps(report.to_json(machine, asked, outcomes()), allow_nan=False))
    assert [goal["is_reached"] for goal in value["goals"]] == [True, True, True, True]
    assert report.merged(value, machine, asked) == outcomes()
    assert report.merged(value, machine, {"quick": True}) == []
    assert report.merged(value, {"gpu": "another"}, asked) == []
    assert report.merged(None, machine, asked) == []


def test_a_result_is_named_by_its_card() -> None:
    assert report.file_name(CARD, False) == "gpu-nvidia-h100-80gb-hbm3.json"
    other = Gpu(0, "NVIDIA GeForce RTX 4070 Ti (Laptop)", (8, 9), 0, "13.0")
    assert report.file_name(other, True) == "gpu-nvidia-geforce-rtx-4070-ti-laptop-quick.json"
    described = report.describe(CARD)
    assert described["gpu"]["compute_capability"] == "9.0"
    assert {"torch", "numpy"} <= set(described["packages"])


def test_the_drivers_version_is_asked_of_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.shutil, "which", lambda _: None)
    assert report.driver_version() is None
    monkeypatch.setattr(report.shutil, "which", lambda _: "nvidia-smi")
    for code, said, expected in ((0, "580.65.06\n580.65.06\n", "580.65.06"), (9, "failed", None), (0, "", None)):
        done = subprocess.CompletedProcess([], code, said, "")
        monkeypatch.setattr(report.subprocess, "run", lambda *_, done=done, **__: done)
        assert report.driver_version() == expected


# --- the script


def no_gpu() -> Gpu:
    raise RuntimeUnavailableError("the NVIDIA driver does not load here: libcuda.so.1")


def test_without_a_gpu_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(check, "require_gpu", no_gpu)
    monkeypatch.setattr(check, "run_apart", lambda *_: pytest.fail("a step was run"))
    assert check.main(["--out", str(tmp_path)]) == check.NO_GPU == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "nothing was measured: the NVIDIA driver does not load here" in said.err
    assert "hint:" in said.err
    assert not list(tmp_path.iterdir())


def test_the_gpu_is_asked_for_before_anything_heavy_is_loaded() -> None:
    code = "import sys; sys.path.insert(0, 'benchmarks'); import gpu_check; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_a_step_replaces_itself_in_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, status = 1, records.Status.DONE
    monkeypatch.setattr(check, "require_gpu", lambda: CARD)
    monkeypatch.setattr(check, "run_apart", lambda step, *_: records.Outcome(step, status, facts={"run": run}))
    assert check.main(["--out", str(tmp_path)]) == 0
    target = tmp_path / "gpu-nvidia-h100-80gb-hbm3.json"
    run, status = 2, records.Status.SKIPPED
    assert check.main(["--out", str(tmp_path), "--step", "torch"]) == 0
    steps = json.loads(target.read_text(encoding="utf-8"))["steps"]
    assert {name: step["facts"]["run"] for name, step in steps.items()} == {
        name: 2 if name == "torch" else 1 for name in check.STEPS
    }
    status = records.Status.FAILED
    assert check.main(["--out", str(tmp_path), "--step", "training"]) == 1
    status = records.Status.DONE
    assert check.main(["--out", str(tmp_path), "--step", "torch"]) == 0  # what failed before was not asked for now
    assert json.loads(target.read_text(encoding="utf-8"))["steps"]["training"]["status"] == "failed"
    assert check.main(["--out", str(tmp_path), "--step", "roofline", "--quick"]) == 0
    assert (tmp_path / "gpu-nvidia-h100-80gb-hbm3-quick.json").is_file()
    assert len(json.loads(target.read_text(encoding="utf-8"))["steps"]) == len(check.STEPS)
    assert str(target) in capsys.readouterr().out


def test_a_step_runs_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # PyTorch then sees no card, wherever this runs
    asked = check._parser().parse_args(["--quick", "--batch", "2", "--precision", "fp16", "--rounds", "3"])
    outcome = check.run_apart("numerics", tmp_path, asked)
    assert outcome.status == "skipped", outcome.reason
    assert "sees no GPU here" in outcome.reason
    assert "pytorch.org" in outcome.hint
    asked.limit = 0.01
    late = check.run_apart("numerics", tmp_path, asked)
    assert (late.status, late.reason) == ("failed", "it was not done after 0.01 s (--limit)")


def test_what_was_asked_for_is_what_a_step_gets(tmp_path: Path) -> None:
    line = ["--quick", "--batch", "2", "--batch", "4", "--precision", "fp16", "--graph", "lookup", "--rounds", "3"]
    asked = check._parser().parse_args([*line, "--optimization-level", "1"])
    again = check._parser().parse_args(check._passed(asked))
    assert check.setting_json(again) == check.setting_json(asked)
    made = setting.make_setting(
        True,
        tmp_path,
        batches=(2, 4),
        rounds=3,
        precisions=(Precision.FP16,),
        kinds=(GraphKind.LOOKUP,),
        optimization_level=1,
    )
    assert (made.batches, made.rounds, made.precisions, made.kinds) == (
        (2, 4),
        3,
        (Precision.FP16,),
        (GraphKind.LOOKUP,),
    )
    full = setting.make_setting(False, tmp_path)
    assert (full.spec.base_channels, full.spec.height, full.batches) == (64, 256, (1, 8))
    assert tuple(check.STEPS) == tuple(dict.fromkeys(check.STEPS))
    for name in check.STEPS:
        assert callable(check.step_named(name))


def test_a_part_takes_seven_minutes_at_most() -> None:
    assert tuple(step for part in check.PARTS.values() for step in part) == check.STEPS
    for number, limits in check.PARTS.items():
        assert sum(limits.values()) <= 420
        asked = check._parser().parse_args(["--part", str(number)])
        assert check.steps_of(asked) == tuple(limits)
    assert check.steps_of(check._parser().parse_args([])) == check.STEPS
    both = check._parser().parse_args(["--part", "1", "--step", "torch", "--step", "tests"])
    assert check.steps_of(both) == ("torch", "tests", *(step for step in check.PARTS[1] if step != "tests"))


def test_a_step_ends_at_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def run(*_: Any, timeout: float, **__: Any) -> Any:
        seen.append(timeout)
        raise subprocess.TimeoutExpired("a step", timeout)

    monkeypatch.setattr(check.subprocess, "run", run)
    outcome = check.run_apart("roofline", tmp_path, check._parser().parse_args([]))
    assert outcome.reason == f"it was not done after {check.LIMITS_S['roofline']} s (--limit)"
    check.run_apart("roofline", tmp_path, check._parser().parse_args(["--limit", "7"]))
    assert seen == [check.LIMITS_S["roofline"], 7]


# --- the step of the tests


REPORT = """<testsuites><testsuite tests="5">
<testcase classname="tests.a" name="one"/><testcase classname="tests.a" name="two"/>
<testcase classname="tests.a" name="three"><skipped message="no pycuda"/></testcase>
<testcase classname="tests.b" name="four[cuda]"><failure message="assert 1 == 2&#10;more">trace</failure></testcase>
<testcase classname="tests.b" name="five"><error message="setup broke"/></testcase>
</testsuite></testsuites>"""


def test_the_rows_say_what_passed_what_was_skipped_and_what_failed() -> None:
    rows = load_script("gpu.gpu_tests").rows_of(REPORT)
    assert [(row.name, row.figures.get("tests"), row.failures) for row in rows] == [
        ("passed", 2.0, ()),
        ("skipped: no pycuda", 1.0, ()),
        ("tests.b::four[cuda]", None, ("assert 1 == 2",)),
        ("tests.b::five", None, ("setup broke",)),
    ]
    with pytest.raises(ValueError, match="not one test"):
        load_script("gpu.gpu_tests").rows_of('<testsuites><testsuite tests="0"/></testsuites>')


def test_only_files_with_such_a_test_are_collected() -> None:
    files = load_script("gpu.gpu_tests").marked_files()
    assert "tests/engines/cuda/test_device.py" in files
    assert "tests/engines/ort/test_runtime_gpu.py" in files
    assert not [file for file in files if file.endswith("test_gpu_check.py")]
    assert len(files) < 10


def test_an_artifact_is_exported_once_and_a_refusal_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def export(_: Any, folder: Path, request: ExportRequest, progress: Any) -> None:
        calls.append(folder)
        if request.int8 is not None:
            (folder / "half").write_text("written")
            raise BuildError("out of reach")
        stand_in.stand_in_artifact(folder, TINY)

    monkeypatch.setattr(setting, "export_artifact", export)
    small = tiny_setting(tmp_path)
    for _ in range(2):
        assert small.artifact(Precision.FP16).manifest.generator == TINY
        with pytest.raises(BuildError, match="out of reach"):
            small.artifact(Precision.INT8)
    assert len(calls) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"artifact", "generator"}


def test_a_folder_of_another_generator_is_refused(tmp_path: Path) -> None:
    other = replace(TINY, height=64)
    stand_in.stand_in_artifact(tmp_path / "artifact", other)
    with pytest.raises(ConfigError, match=r"`work`: .*artifact is of another generator"):
        tiny_setting(tmp_path).artifact(Precision.FP32)
    assert tiny_setting(tmp_path).generator.spec == TINY
    elsewhere = setting.Setting(other, tmp_path, device="cpu")
    with pytest.raises(ConfigError, match=r"`work`: .*generator is of another generator"):
        elsewhere.generator  # noqa: B018


def test_the_generator_is_made_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny_setting(tmp_path)
    made = first.generator
    monkeypatch.setattr(setting, "make_generator", lambda _: pytest.fail("it was made again"))
    second = tiny_setting(tmp_path)
    again = second.generator
    assert not again.training
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in made.state_dict().items())
    assert first.generator_sha256 == second.generator_sha256


def test_the_reference_is_computed_once_for_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference: Any = load_script("gpu.reference")
    first = reference.Reference.of(tiny_setting(tmp_path))
    computed: list[str] = []

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            computed.append(function.__name__)
            return function(*given)

        return run

    for name in ("run_reference", "rounding_error"):
        monkeypatch.setattr(reference, name, counting(getattr(reference, name)))
    again = reference.Reference.of(tiny_setting(tmp_path))
    assert computed == []
    assert again.rounding == first.rounding
    assert first.outputs.keys() == again.outputs.keys() == {"image", "pixels", "logits"}
    assert all(np.array_equal(value, again.outputs[name]) for name, value in first.outputs.items())
    # Other maps, and other weights, are another reference.
    turned = tiny_setting(tmp_path)
    turned.maps.reverse()
    assert not np.array_equal(reference.Reference.of(turned).outputs["image"], first.outputs["image"])
    assert computed == ["run_reference", "rounding_error"]
    other = tiny_setting(tmp_path)
    with torch.no_grad():
        other.generator.conv_img.bias.add_(0.5)
    setting.save_checkpoint(tmp_path / "generator", other.generator, step=0, origin="import")
    assert not np.array_equal(reference.Reference.of(other).outputs["image"], first.outputs["image"])


def test_float64_is_computed_on_the_steps_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference: Any = load_script("gpu.reference")
    asked: list[Any] = []

    def rounding_error(*given: Any) -> RoundingError:
        asked.append(given[-1])
        return RoundingError(1, 1, 1, 1)

    monkeypatch.setattr(reference, "rounding_error", rounding_error)
    reference.Reference.of(tiny_setting(tmp_path, device="cuda"))
    monkeypatch.setattr(setting, "export_artifact", lambda *given, **_: asked.append(given[2].device))
    tiny_setting(tmp_path, device="cuda")._export(tmp_path, False)
    assert asked == ["cuda", "cuda"]


@pytest.mark.gpu
def test_all_of_it_in_small_on_a_gpu(tmp_path: Path) -> None:
    try:
        if not find_gpus():
            pytest.skip("the NVIDIA driver sees no GPU")
    except RuntimeUnavailableError as error:
        pytest.skip(error.message)
    steps = [name for name in check.STEPS if name != "tests"]  # this is one of them
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--quick", "--out", str(tmp_path)]
    command += [part for name in steps for part in ("--step", name)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = tmp_path.glob("gpu-*-quick.json")
    found = json.loads(result.read_text(encoding="utf-8"))["steps"]
    assert set(found) == set(steps)
    assert all(step["status"] in ("done", "skipped") for step in found.values())
