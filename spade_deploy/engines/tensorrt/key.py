"""The key of an engine: the graph, the TensorRT, the card, the profile and the options that it was built with.

An engine runs only where all of these are the same. That a file exists at some path says nothing: a graph that was
exported again, another TensorRT, another card or another profile need another engine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from spade_deploy.errors import ArtifactError, ConfigError, reason_of
from spade_deploy.fields import digest_of, from_json, matching, to_json
from spade_deploy.settings import setting
from spade_deploy.spec import Flavour, GraphKind, Precision, ShapeProfile

OPTIMIZATION_LEVELS = range(6)
Capability = Annotated[str, matching(r"\d{1,3}(\.\d{1,3})?", "a compute capability, such as 8.9")]
Version = Annotated[str, matching(r"\d{1,6}(\.\d{1,6}){2}\D?.{0,40}", "a version, such as 10.8.0")]


def parse_bytes(text: str) -> int:
    """'4GiB', '512MiB' or a number of bytes. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(|[KMGT]i?B?|B)", text.strip(), flags=re.IGNORECASE)
    if found is None:
        raise ConfigError(
            f"`workspace_bytes`: {text!r} is not an amount of memory",
            hint="`workspace_bytes` 4GiB, `workspace_bytes` 512MiB",
        )
    unit = found[2].upper()
    power = "BKMGT".index(unit[0]) if unit else 0
    return int(float(found[1]) * (1024 if "I" in unit or power == 0 else 1000) ** power)


@dataclass(frozen=True)
class BuildOptions:
    """The builder's options besides the profile. None leaves an option to TensorRT, whose optimization level is 3."""

    optimization_level: int | None = setting(
        None, help="0..5: a higher level takes longer to build, and may run faster.", after="compute_capability"
    )
    workspace_bytes: int | None = setting(
        None,
        help="Workspace memory for each layer, such as 4GiB.",
        flag="workspace",
        parse=parse_bytes,
        after="compute_capability",
    )
    version_compatible: bool = setting(
        False, help="Make engines that later releases of the same major TensorRT version can load."
    )
    hardware_compatible: bool = setting(False, help="Make engines that run on all GPUs from Ampere on (slower).")

    def __post_init__(self) -> None:
        if self.optimization_level is not None and self.optimization_level not in OPTIMIZATION_LEVELS:
            raise ConfigError(f"`optimization_level`: {self.optimization_level} is not in 0..5")
        if self.workspace_bytes is not None and self.workspace_bytes < 1 << 20:
            raise ConfigError(
                f"`workspace_bytes`: {self.workspace_bytes} bytes are less than 1 MiB; write it as 4GiB or 512MiB"
            )

    @classmethod
    def from_json(cls, value: Any) -> BuildOptions:
        """Raises ConfigError, also for an option that this version does not know: it may change what is built."""
        return from_json(cls, value, "options")


@dataclass(frozen=True)
class EngineKey:
    """One engine's identity: all that must be the same for another build to give the same engine."""

    onnx_sha256: str
    """The digest of the graph's file."""
    flavour: Flavour
    """Which TensorRT built it."""
    version: Version
    """The version of that TensorRT."""
    gpu: str
    """The name of the card, or of the compute capability that it was built for ahead of time."""
    compute_capability: Capability
    """The compute capability of the card, as '8.9'."""
    system: str
    """The operating system and processor, as 'linux-x86_64'."""
    precision: Precision
    """The precision of the graph."""
    kind: GraphKind
    """The kind of the graph."""
    profile: ShapeProfile
    """The sizes that it takes."""
    options: BuildOptions
    """The builder's options."""

    @property
    def digest(self) -> str:
        """The SHA-256 of the key, as hexadecimal."""
        return digest_of(self.to_json())

    def to_json(self) -> dict[str, Any]:
        return to_json(self)

    @classmethod
    def from_json(cls, value: Any) -> EngineKey:
        """Read a key from JSON. Raises ArtifactError if it is no key."""
        try:
            return from_json(cls, value, ignore_unknown=True)
        except ConfigError as error:
            raise ArtifactError(
                f"an engine's key cannot be read: {reason_of(error)}", hint="`spade build` makes the engine again"
            ) from error


class Edition(StrEnum):
    """How much of TensorRT is installed. The whole builds and runs; the others run version-compatible engines alone."""

    WHOLE = "whole"
    LEAN = "lean"
    DISPATCH = "dispatch"
    """It computes nothing itself: it loads the lean runtime that a version-compatible engine brings."""


@dataclass(frozen=True)
class Machine:
    """Where an engine is to run, in the words of an engine's key."""

    flavour: Flavour
    """The TensorRT that is installed."""
    version: str
    """Its version."""
    gpu: str
    """The card's name."""
    compute_capability: str
    """The compute capability of the card, as '8.9'."""
    system: str
    """The operating system and processor."""
    edition: Edition = Edition.WHOLE
    """How much of that TensorRT is installed."""


def differences(key: EngineKey, onnx_sha256: str, machine: Machine) -> list[str]:
    """The reasons, in words, why an engine cannot run here; empty if it can."""
    found = []
    if key.onnx_sha256 != onnx_sha256:
        found.append(f"it was built of another graph ({key.onnx_sha256[:12]}, here {onnx_sha256[:12]})")
    if key.flavour is not machine.flavour:
        found.append(f"it is of {key.flavour}, here is {machine.flavour}")
    elif not _is_same_version(key, machine):
        found.append(f"it was built by version {key.version}, here is {machine.version}")
    if machine.edition is not Edition.WHOLE and not key.options.version_compatible:
        found.append(f"it is not version-compatible, and here is only TensorRT's {machine.edition} runtime")
    if key.system != machine.system:
        found.append(f"it was built for {key.system}, here is {machine.system}")
    found += _card_differences(key, machine)
    return found


def _is_same_version(key: EngineKey, machine: Machine) -> bool:
    if not key.options.version_compatible:
        return key.version == machine.version
    built, here = (tuple(int(part) for part in text.split(".")[:3]) for text in (key.version, machine.version))
    return built[0] == here[0] and built <= here


def _card_differences(key: EngineKey, machine: Machine) -> list[str]:
    here = f"{machine.gpu} ({machine.compute_capability})"
    if key.options.hardware_compatible:
        is_ampere = _capability(machine.compute_capability) >= (8, 0)
        return [] if is_ampere else [f"it runs on cards from compute capability 8.0 on, here is {here}"]
    if key.compute_capability != machine.compute_capability:
        return [f"it was built for compute capability {key.compute_capability}, here is {here}"]
    # TensorRT tunes an engine on the very card. TensorRT for RTX finishes its engines on the card that runs them.
    if key.flavour is Flavour.TENSORRT and key.gpu != machine.gpu:
        return [f"it was built on {key.gpu}, here is {here}"]
    return []


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


def mismatch_error(
    name: str, found: list[str], options: Mapping[str, str], edition: Edition = Edition.WHOLE
) -> ArtifactError:
    """One error that names all differences.

    options: the options of `spade build` that make the engine again. edition: what is installed here, which may be
    unable to build.
    """
    flags = " ".join(f"--{option} {value}" for option, value in options.items())
    hint = f"spade build ARTIFACT {flags}".rstrip()
    if edition is not Edition.WHOLE:
        away = f"where that is installed: spade build ARTIFACT {flags} --version-compatible"
        hint = f"pip install 'spade-deploy[trt]' here, or, {away}"
    return ArtifactError(f"the engine {name} must not run here: {'; '.join(found)}", hint=hint)
