from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from spade_deploy.engines.tensorrt.key import BuildOptions, EngineKey, Machine, differences, mismatch_error, parse_bytes
from spade_deploy.errors import ArtifactError, ConfigError
from spade_deploy.spec import Flavour, GraphKind, Precision, ShapeProfile

KEY = EngineKey(
    "a" * 64,
    Flavour.TENSORRT,
    "11.4.0.106",
    "NVIDIA H100",
    "9.0",
    "linux-x86_64",
    Precision.FP16,
    GraphKind.DENSE,
    ShapeProfile.parse("1x256x256:4x256x256:16x512x512"),
    BuildOptions(),
)
HERE = Machine(Flavour.TENSORRT, "11.4.0.106", "NVIDIA H100", "9.0", "linux-x86_64")


def test_an_engine_runs_where_it_was_built() -> None:
    assert differences(KEY, "a" * 64, HERE) == []


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"version": "11.5.0.1"}, "built by version 11.4.0.106, here is 11.5.0.1"),
        ({"flavour": Flavour.RTX}, "of tensorrt, here is rtx"),
        ({"gpu": "NVIDIA H200"}, r"built on NVIDIA H100, here is NVIDIA H200 \(9.0\)"),
        ({"compute_capability": "8.9", "gpu": "NVIDIA L4"}, r"compute capability 9.0, here is NVIDIA L4 \(8.9\)"),
        ({"system": "windows-amd64"}, "built for linux-x86_64, here is windows-amd64"),
    ],
)
def test_what_differs_is_said(machine: dict[str, Any], said: str) -> None:
    import re

    found = differences(KEY, "a" * 64, replace(HERE, **machine))
    assert len(found) == 1
    assert re.search(said, found[0])


def test_a_graph_that_was_exported_again_makes_another_engine() -> None:
    assert "another graph" in differences(KEY, "b" * 64, HERE)[0]


def test_everything_that_differs_is_said_at_once() -> None:
    assert len(differences(KEY, "b" * 64, Machine(Flavour.RTX, "1.7", "x", "8.9", "windows-amd64"))) == 4


def test_compatible_engines_run_further() -> None:
    later = replace(HERE, version="11.5.0.1")
    key = replace(KEY, options=BuildOptions(version_compatible=True))
    assert differences(key, "a" * 64, later) == []
    assert differences(key, "a" * 64, replace(HERE, version="11.3.0.99"))  # an earlier one cannot
    assert differences(key, "a" * 64, replace(HERE, version="12.0.0.1"))
    key = replace(KEY, options=BuildOptions(hardware_compatible=True))
    assert differences(key, "a" * 64, replace(HERE, gpu="NVIDIA L4", compute_capability="8.9")) == []
    assert differences(key, "a" * 64, replace(HERE, gpu="NVIDIA T4", compute_capability="7.5"))


def test_an_rtx_engine_runs_on_every_card_of_its_capability() -> None:
    key = replace(KEY, flavour=Flavour.RTX, gpu="any of compute capability 8.9", compute_capability="8.9")
    here = replace(HERE, flavour=Flavour.RTX, gpu="NVIDIA GeForce RTX 4090", compute_capability="8.9")
    assert differences(key, "a" * 64, here) == []
    assert differences(key, "a" * 64, replace(here, compute_capability="8.6"))


def test_json_is_exact_and_every_field_is_in_the_digest() -> None:
    assert EngineKey.from_json(KEY.to_json()) == KEY
    others = [
        replace(KEY, onnx_sha256="b" * 64),
        replace(KEY, flavour=Flavour.RTX),
        replace(KEY, version="11.4.0.107"),
        replace(KEY, gpu="NVIDIA H200"),
        replace(KEY, compute_capability="8.9"),
        replace(KEY, system="windows-amd64"),
        replace(KEY, precision=Precision.FP32),
        replace(KEY, kind=GraphKind.LOOKUP),
        replace(KEY, profile=ShapeProfile.parse("1x256x256")),
        replace(KEY, options=BuildOptions(optimization_level=5)),
        replace(KEY, options=BuildOptions(workspace_bytes=1 << 30)),
        replace(KEY, options=BuildOptions(version_compatible=True)),
        replace(KEY, options=BuildOptions(hardware_compatible=True)),
    ]
    assert len({key.digest for key in [KEY, *others]}) == 14


@pytest.mark.parametrize(
    "change",
    [
        {"profile": "1x2"},
        {"precision": "fp64"},
        {"options": {"speed": 1}},
        {"options": None},
        {"gpu": 7},
        {"version": None},
    ],
)
def test_what_is_no_key_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="key cannot be read"):
        EngineKey.from_json({**KEY.to_json(), **change})
    with pytest.raises(ArtifactError, match="key cannot be read"):
        EngineKey.from_json({name: value for name, value in KEY.to_json().items() if name not in change})


def test_profiles() -> None:
    profile = ShapeProfile.parse("1x256x256:4x256x256:16x512x512")
    assert str(profile) == "1x256x256:4x256x256:16x512x512"
    assert profile.contains(16, 512, 256)
    assert not profile.contains(17, 512, 256)
    assert not profile.contains(1, 224, 256)
    assert ShapeProfile.parse("2x64x32") == ShapeProfile((2, 64, 32), (2, 64, 32), (2, 64, 32))


@pytest.mark.parametrize("text", ["", "1x256", "1x256x256:2x256x256", "axbxc", "1x256x256x3", "²x256x256"])
def test_what_is_no_profile_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="`profile`") as caught:
        ShapeProfile.parse(text)
    assert "1x256x256:4x256x256:16x512x512" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["0x256x256", "4x256x256:1x256x256:16x256x256", "1x256x256:1x512x256:1x256x256"])
def test_profiles_rise(text: str) -> None:
    with pytest.raises(ConfigError, match="do not rise"):
        ShapeProfile.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GiB", 4 << 30),
        ("512 MiB", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("2GB", 2 * 10**9),
        ("123456", 123456),
        ("1k", 1000),
    ],
)
def test_amounts_of_memory(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-4GiB", "4 PiB", "4GiBs"])
def test_no_amounts_of_memory(text: str) -> None:
    with pytest.raises(ConfigError, match="`workspace_bytes`"):
        parse_bytes(text)


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="`optimization_level`: 6"):
        BuildOptions(optimization_level=6)
    with pytest.raises(ConfigError, match="`workspace_bytes`: 4 bytes"):
        BuildOptions(workspace_bytes=4)


def test_a_digest_stays_what_it_is() -> None:
    """Engines are named by it: another way to write the same key would build every engine anew."""
    assert KEY.digest == "4c8d5439b38f2d1521fbdf694eff0a9b8a730b0a3c5b0f6e12f7e002437ba02d"
    again = EngineKey.from_json(json.loads(json.dumps(KEY.to_json())))
    assert again.digest == KEY.digest
    # Enumerations, not texts that equal them: they are compared by identity.
    assert again.flavour is Flavour.TENSORRT
    assert again.precision is Precision.FP16
    assert again.kind is GraphKind.DENSE


@pytest.mark.parametrize(
    ("built", "here", "runs"),
    [
        ("11.4.0.106", "11.4.0.106", True),
        ("11.9.0.1", "11.10.0.1", True),  # ten is more than nine, and "10" is less than "9"
        ("11.10.0.1", "11.9.0.1", False),
        ("11.4.1.1", "11.4.0.9", False),
        ("11.4.0.106", "11.4.0.12", True),  # the fourth number is of the build alone
        ("11.4.0.106", "12.4.0.106", False),
        ("11.4.0.106", "10.9.0.1", False),
    ],
)
def test_a_version_compatible_engine_runs_from_its_own_version_on(built: str, here: str, runs: bool) -> None:
    key = replace(KEY, version=built, options=BuildOptions(version_compatible=True))
    assert (differences(key, "a" * 64, replace(HERE, version=here)) == []) == runs


@pytest.mark.parametrize(
    ("capability", "runs"), [("7.5", False), ("8.0", True), ("8", True), ("8.6", True), ("12.0", True)]
)
def test_a_hardware_compatible_engine_runs_from_ampere_on(capability: str, runs: bool) -> None:
    key = replace(KEY, options=BuildOptions(hardware_compatible=True))
    assert (differences(key, "a" * 64, replace(HERE, gpu="x", compute_capability=capability)) == []) == runs


def test_one_error_says_all_that_differs_and_the_command_that_mends_it() -> None:
    error = mismatch_error("e.engine", ["this", "that"], {"precision": "fp16", "graph": "dense"})
    assert error.message == "the engine e.engine must not run here: this; that"
    assert error.hint == "spade build ARTIFACT --precision fp16 --graph dense"
    assert mismatch_error("e", ["x"], {}).hint == "spade build ARTIFACT"


def test_the_least_workspace_is_a_mebibyte() -> None:
    assert BuildOptions(workspace_bytes=1 << 20).workspace_bytes == 1 << 20
    with pytest.raises(ConfigError, match="1048575 bytes are less than 1 MiB"):
        BuildOptions(workspace_bytes=(1 << 20) - 1)
    assert parse_bytes("  4GiB ") == 4 << 30
    for level in (0, 5):
        assert BuildOptions(optimization_level=level).optimization_level == level
