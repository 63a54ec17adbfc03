"""The key of what was measured: the artifact, the device with its instruction sets and threads, and all versions.

A measurement says nothing of another model, another processor, another number of threads or another version of an
engine, so one is used only where all of these are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from spade_deploy.artifact import Artifact
from spade_deploy.engines.open import ENGINES
from spade_deploy.fields import Count, Sha256, digest_of, to_json
from spade_deploy.machine.cores import usable_cores
from spade_deploy.machine.packages import installed
from spade_deploy.machine.processor import instruction_sets, processor

CPU = "cpu"


@dataclass(frozen=True)
class TuningKey:
    """All that must be the same for a measurement to hold."""

    artifact_sha256: Sha256
    """The digest of the artifact's manifest, which holds those of its files."""
    device: str
    """The kind of device that the engines ran on: 'cpu'."""
    device_name: str
    """Which one it is: the name of the processor."""
    instructions: tuple[str, ...]
    """The instruction sets that decide which arithmetic is fast there."""
    cores: Count
    """The cores that the process may use."""
    threads: Count
    """The threads that an engine is given."""
    versions: dict[str, str]
    """This package and the engines that are installed, with their versions."""

    @property
    def digest(self) -> str:
        """The SHA-256 of the key, as hexadecimal."""
        return digest_of(to_json(self))


def key_on_cpu(artifact: Artifact, threads: int | None) -> TuningKey:
    """The key of measurements on this machine's CPU. threads: None is one a core."""
    packages = [name for engine in ENGINES if engine.on_cpu for name in engine.distributions]
    return TuningKey(
        artifact_sha256=artifact.manifest.to_json()["manifest_sha256"],
        device=CPU,
        device_name=processor(),
        instructions=instruction_sets(),
        cores=usable_cores(),
        threads=threads or usable_cores(),
        versions=installed(dict.fromkeys(["spade-deploy", *packages])),
    )
