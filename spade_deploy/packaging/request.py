"""The request for `spade package`: which server the folder is for, and how that server runs the models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from spade_deploy.engines.tensorrt.request import parse_engine_precision
from spade_deploy.errors import ConfigError, quoted
from spade_deploy.settings import check_positive, check_ranges, setting
from spade_deploy.spec import EXPORTED, MAX_BATCH, Precision

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Device(StrEnum):
    """Where Triton runs the ONNX graphs. Auto: on the GPUs that it finds, else on the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


@dataclass(frozen=True, kw_only=True)
class PackageRequest:
    """Where a package of an artifact goes, and what stands in its configuration."""

    triton: Path = setting(help="Folder for a model repository of the Triton Inference Server.", metavar="FOLDER")
    name: str | None = setting(None, help="Name of the models; default: that of the run.")
    precision: Precision | None = setting(
        None,
        help="Precision of the graphs; default: fp32, and for a TensorRT engine the first of fp16, int8, fp32.",
        metavar="|".join(EXPORTED),
        parse=parse_engine_precision,
    )
    device: Device = setting(Device.AUTO, help="Where the ONNX graphs run; auto: on the GPUs if there are any.")
    max_batch: int = setting(4, help="Largest batch of waiting requests.", least=1, most=MAX_BATCH)
    max_delay_ms: float = setting(
        2.0, help="Milliseconds that a request waits for others to share its batch.", least=0, most=1000
    )
    instances: int = setting(1, help="Copies of each graph, on each GPU or on the CPU.", least=1, most=64)
    threads: int | None = setting(None, help="CPU threads of each copy; default: one per core.")
    model_version: int = setting(
        1, help="Version number of the models, which is also the name of their folder.", least=1, most=2**31 - 1
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        check_positive("threads", self.threads)
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"`name`: {quoted(self.name)} cannot name a model",
                hint="use at most 100 letters, digits, '.', '_' and '-'; the first has to be a letter or a digit",
            )
