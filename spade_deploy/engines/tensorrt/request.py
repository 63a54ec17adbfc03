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
        help="fp16 where the artifact has it if left out.",
        metavar="|".join(EXPORTED),
        parse=parse_engine_precision,
    )
    graph: GraphChoice = setting(
        GraphChoice.AUTO, help="dense, lookup, or auto: both where both are there.", parse=parse_graph_choice
    )
    profile: ShapeProfile | None = setting(
        None,
        help="MIN:OPT:MAX, each BATCHxHEIGHTxWIDTH; one to four images of the model's size if left out.",
        parse=ShapeProfile.parse,
    )
    flavour: Flavour | None = setting(
        None, help="TensorRT where it is installed, else TensorRT for RTX, if left out.", flag="target"
    )
    compute_capability: str | None = setting(
        None, help="8.9 and the like: rtx builds ahead of time, on a machine without the card."
    )
    options: BuildOptions = field(default_factory=BuildOptions)
    """The builder's other options."""

    timing_cache: Path | None = setting(
        None, help="Read and written; one in the artifact if left out.", after="optimization_level"
    )

    def __post_init__(self) -> None:
        if self.precision not in (None, *EXPORTED):
            raise ConfigError(
                f"`precision`: {self.precision} is no graph's, and an engine has its graph's;"
                f" allowed are {', '.join(EXPORTED)}"
            )
