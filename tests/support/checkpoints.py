"""What a checkpoint.json says, without a checkpoint."""

from __future__ import annotations

from typing import Any

from spade_deploy.runs import CheckpointInfo
from spade_deploy.spec import GeneratorSpec, LabelSpec

SPEC = GeneratorSpec(LabelSpec(3), base_channels=4, hidden_channels=8, height=32, width=32)


def checkpoint_info(created: int = 1, step: int = 1, digest: str = "a" * 64, **changes: Any) -> CheckpointInfo:
    return CheckpointInfo(
        **{
            "created_unix_ns": created,
            "step": step,
            "origin": "train",
            "generator": SPEC,
            "generator_sha256": digest,
            "discriminator_sha256": "b" * 64,
            "optimizers_sha256": "c" * 64,
            **changes,
        }
    )
