"""The request for a build: which graphs become engines, for which shapes and for which card."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from spade_deploy.engines.base import parse_graph_choice
from spade_deploy.engines.tensorrt.key import BuildOptions
from spade_deploy.errors import ConfigError
from spade_deploy.settings import check_one_of, setting
from spade_deploy.spec import EXPORTED, Flavour, GraphChoice, Precision, ShapeProfile


def parse_engine_precision(text: str) -> Precision:
    """The precision of an engine, which is that of its graph's file: bf16 is none. Raises ConfigError."""
    hint = "`spade infer --precision bf16` runs in OpenVINO, without a build" if text == Precision.BF16 else None
    check_one_of("precision", text, EXPORTED, hint=hint)
    return Precision(text)


@dataclass(frozen=True)
class BuildRequest:
    """Which engines are built; None leaves the choice to `build`."""

    precision: Precision | None = setting(
        None,
        help="Precision; default: fp16 if the artifact has it.",
        metavar="|".join(EXPORTED),
        parse=parse_engine_precision,
    )
    graph: GraphChoice = setting(
        GraphChoice.AUTO, help="dense, lookup, or auto: both if the artifact has both.", parse=parse_graph_choice
    )
    profile: ShapeProfile | None = setting(
        None,
        help="MIN:OPT:MAX, each BATCHxHEIGHTxWIDTH; default: one to four images of the model's size.",
        parse=ShapeProfile.parse,
    )
    flavour: Flavour | None = setting(
        None, help="tensorrt or rtx; default: TensorRT if it is installed, else TensorRT for RTX.", flag="target"
    )
    compute_capability: str | None = setting(
        None, help="Compute capability to build for, such as 8.9: rtx can build on a machine without the GPU."
    )
    options: BuildOptions = field(default_factory=BuildOptions)
    """The builder's other options."""

    timing_cache: Path | None = setting(
        None, help="Timing cache file, read and written; default: in the artifact.", after="optimization_level"
    )

    def __post_init__(self) -> None:
        if self.precision not in (None, *EXPORTED):
            raise ConfigError(
                f"`precision`: no graph is exported in {self.precision}, and an engine has the precision of its graph;"
                f" allowed are {', '.join(EXPORTED)}"
            )
