"""What Linux says of a processor, and the kind of CPU that follows from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from spade_deploy.machine import processor
from spade_deploy.machine.processor import all_instruction_sets, cpu_kind, cpu_model, instruction_sets


def test_the_kind_of_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: dict[str, str] = {}
    monkeypatch.setattr(processor, "_listed", lambda *keys: [listed[key] for key in keys if key in listed])
    for flags, kind in {
        "avx2 avx512f avx512_bf16 amx_tile amx_bf16": "amx",
        "avx2 avx512f avx512_bf16": "avx512_bf16",
        "avx2 avx512f": "avx512",
        "sse4_2 avx2": "avx2",
    }.items():
        listed["flags"] = f"{flags} fpu"
        assert cpu_kind() == kind
        assert set(instruction_sets()) == set(flags.split())
        assert set(all_instruction_sets()) == {"fpu", *flags.split()}
    listed.clear()
    listed["features"] = "asimd bf16"
    assert cpu_kind() == "bf16"
    listed.update({"vendor_id": "GenuineIntel", "cpu family": "6", "model": "207", "stepping": "2"})
    assert cpu_model() == "vendor GenuineIntel, family 6, model 207, stepping 2"


def test_the_instruction_sets_of_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "_CPUINFO", listed)
    listed.write_text(
        "model name : X flags\nflags\t\t: fpu avx512_bf16 amx_bf16\nflags\t\t: fpu avx512_bf16 amx_bf16\n"
    )
    assert all_instruction_sets() == ("amx_bf16", "avx512_bf16", "fpu")
    listed.write_text("Features\t: fp asimd bf16 i8mm\n")
    assert all_instruction_sets() == ("asimd", "bf16", "fp", "i8mm")
    listed.unlink()
    assert all_instruction_sets() == ()
