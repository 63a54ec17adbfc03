"""How int8 graphs are made: calibrate, rank the layers, choose those that stay float32, write, and check the file.

The ranking is measured once, on the dense model. The lookup graph keeps the same layers, with ranges of its own, since
its learned shortcuts multiply other values. Every graph then runs in ONNX Runtime on all calibration maps and on the
golden inputs, and more layers stay float32 if it misses its target.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spade_deploy.artifact import IMAGE, Arrays, Graph, graph_facts, graph_file, one_by_one
from spade_deploy.engines.ort.session import INSTALL, load_onnxruntime, open_session
from spade_deploy.export.build import ExportedModel, build_model, model_inputs
from spade_deploy.export.int8.qdq import write_int8
from spade_deploy.export.int8.request import Int8Request
from spade_deploy.export.int8.sensitivity import (
    Batches,
    Calibration,
    Choice,
    Images,
    LayerDamage,
    as_db,
    calibrate,
    choose_layers,
    layer_of,
    mean_square_error,
    most_kept,
    out_of_reach,
    rank_layers,
    simulated_error,
)
from spade_deploy.export.onnx_file import OPSET
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.networks.build import Generator
from spade_deploy.networks.sims import bank_of_generator
from spade_deploy.progress import SILENT, Progress
from spade_deploy.spec import GraphKind, Precision

RANKED_ON = 3
"""How many evenly spaced calibration maps each layer is measured on."""
CHOSEN_ON = 4
"""How many calibration maps a set of layers is measured on, besides the golden inputs."""


@dataclass(frozen=True)
class GraphQuality:
    """How close an int8 graph in ONNX Runtime comes to float32."""

    graph: str
    """The graph, in words."""

    kept: tuple[str, ...]
    """The layers that stay float32 though they could be int8."""

    calibration_psnr_db: float
    """The PSNR on the calibration maps; infinite where there is no difference."""

    golden_psnr_db: float
    """The PSNR on the golden inputs; infinite where there is no difference."""


@dataclass(frozen=True)
class Int8Summary:
    """The facts about the int8 graphs, for the report."""

    min_psnr_db: float
    """The PSNR that every graph must reach."""

    calibration: str
    """Where the calibration maps come from, in words."""

    maps: int
    """How many calibration maps there are."""

    ranking: tuple[LayerDamage, ...]
    """The error of each layer in int8, worst first."""

    choice: Choice
    """The layers that stay float32 in the dense graph, by simulation."""

    graphs: tuple[GraphQuality, ...] = field(default=())
    """The quality that the written graphs reach."""

    @property
    def kept(self) -> frozenset[str]:
        """Layers that stay float32 in at least one graph though they could be int8."""
        return frozenset(self.choice.kept).union(*(graph.kept for graph in self.graphs))

    @property
    def ranked_on(self) -> int:
        """How many maps each layer was measured on."""
        return min(RANKED_ON, self.maps)

    @property
    def int8_share(self) -> float:
        """The share of the dense graph's multiply-adds that is int8."""
        return sum(entry.work_share for entry in self.ranking if entry.layer not in self.kept)

    def to_json(self) -> dict[str, Any]:
        return {
            "min_psnr_db": self.min_psnr_db,
            "calibration": self.calibration,
            "maps": self.maps,
            "ranked_on_maps": self.ranked_on,
            "all_layers_psnr_db": _finite(self.choice.plain_psnr_db),
            "int8_share_of_multiply_adds": self.int8_share,
            "graphs": [
                {
                    "graph": graph.graph,
                    "kept_fp32": list(graph.kept),
                    "calibration_psnr_db": _finite(graph.calibration_psnr_db),
                    "golden_psnr_db": _finite(graph.golden_psnr_db),
                }
                for graph in self.graphs
            ],
            "ranking": [
                {
                    "layer": entry.layer,
                    "psnr_db": entry.psnr_db,
                    "error_grey_levels": entry.grey_levels,
                    "share_of_multiply_adds": entry.work_share,
                    "kept_fp32": entry.layer in self.kept,
                }
                for entry in self.ranking
            ],
        }


def write_int8_graphs(
    generator: Generator,
    folder: Path,
    kinds: Sequence[GraphKind],
    request: Int8Request,
    golden: tuple[Arrays, Images],
    progress: Progress = SILENT,
) -> tuple[tuple[Graph, ...], Int8Summary]:
    """Write an int8 graph of each kind into `folder`, where its fp32 graph is already.

    golden: the golden inputs and the reference's images of them.
    Raises ExportError where the target is out of reach, MissingDependencyError without ONNX Runtime.
    """
    # Before the minutes of work.
    load_onnxruntime("`int8` measures its graphs in ONNX Runtime, which", hint=INSTALL)
    model = build_model(generator)
    calibration, ranking, choice = _plan(model, request, golden, progress)
    summary = Int8Summary(request.min_psnr_db, request.described, len(calibration.images), ranking, choice)
    graphs, qualities = [], []
    for kind in kinds:
        ranges = calibration.ranges
        if kind is GraphKind.LOOKUP:
            lookup = build_model(generator, kind)
            tables = _batches(lookup, request.calibration)
            ranges = calibrate(lookup, tables, progress, f"calibrating the {kind} graph").ranges
        layers = tuple(dict.fromkeys(map(layer_of, calibration.work)))
        maker = _Maker(folder, kind, generator, ranges, layers, request, calibration.images, golden, progress)
        quality = maker.make(choice.kept, ranking)
        file = graph_file(Precision.INT8, kind)
        graphs.append(
            Graph(
                file, Precision.INT8, maker.float32_layers(quality.kept), OPSET, kind, min_psnr_db=request.min_psnr_db
            )
        )
        qualities.append(quality)
    return tuple(graphs), Int8Summary(
        summary.min_psnr_db, summary.calibration, summary.maps, ranking, choice, tuple(qualities)
    )


def _plan(
    model: ExportedModel, request: Int8Request, golden: tuple[Arrays, Images], progress: Progress
) -> tuple[Calibration, tuple[LayerDamage, ...], Choice]:
    batches = _batches(model, request.calibration)
    calibration = calibrate(model, batches, progress)
    few, chosen = _spaced(len(batches), RANKED_ON), _spaced(len(batches), CHOSEN_ON)
    ranking = rank_layers(
        model,
        calibration,
        [batches[index] for index in few],
        calibration.images[few],
        progress,
    )
    sets = [
        ([batches[index] for index in chosen], calibration.images[chosen]),
        (_batches(model, golden[0]), golden[1]),
    ]
    tried = 0

    def psnr_without(kept: Collection[str]) -> float:
        nonlocal tried
        tried += 1
        progress.count("choosing the layers that stay float32", tried, len(ranking).bit_length() + 2)
        layers = {entry.layer for entry in ranking} - set(kept)
        return min(as_db(simulated_error(model, calibration.ranges, layers, *each)) for each in sets)

    return calibration, ranking, choose_layers(ranking, psnr_without, request.min_psnr_db)


@dataclass(frozen=True)
class _Maker:
    """Writes one graph, and writes it again with further layers in float32 until it meets the target."""

    folder: Path
    """The folder with the fp32 graph, into which the int8 graph is written."""
    kind: GraphKind
    """The kind of the graph."""
    generator: Generator
    """The generator that the graph is made of."""
    ranges: Mapping[str, float]
    """The largest magnitude of the input of each module that can be int8."""
    layers: tuple[str, ...]
    """Every layer of the dense graph, those that can only compute in float32 included, in the order they run."""
    request: Int8Request
    """The calibration maps and the quality to reach."""
    expected: Images
    """The float32 images of the calibration maps."""
    golden: tuple[Arrays, Images]
    """The golden inputs and the reference's images of them."""
    progress: Progress
    """It is told of each image."""

    def make(self, kept: Sequence[str], ranking: Sequence[LayerDamage]) -> GraphQuality:
        """Write the graph and measure it. Raises ExportError if too few layers would be left in int8."""
        order = [entry.layer for entry in ranking]
        for count in range(len(kept), most_kept(ranking) + 1):
            quality = self._write(order[:count])
            reached = min(quality.calibration_psnr_db, quality.golden_psnr_db)
            if reached >= self.request.min_psnr_db:
                return quality
        raise out_of_reach(self.request.min_psnr_db, reached, count, ranking)

    def _write(self, kept: Sequence[str]) -> GraphQuality:
        ranges = {module: largest for module, largest in self.ranges.items() if layer_of(module) not in kept}
        target = self.folder / graph_file(Precision.INT8, self.kind)
        facts = graph_facts(self.kind, Precision.INT8, self.float32_layers(kept))
        write_int8(self.folder / graph_file(Precision.FP32, self.kind), target, ranges, facts)
        session = open_session(target)
        total = len(self.expected) + len(self.golden[1])
        seen = self._images(session, self.request.calibration, 0, total)
        calibration = mean_square_error(seen, self.expected)
        seen = self._images(session, self.golden[0], len(self.expected), total)
        golden = mean_square_error(seen, self.golden[1])
        self._tell(total, total)
        name = "int8" if self.kind is GraphKind.DENSE else f"int8 {self.kind}"
        return GraphQuality(name, tuple(kept), as_db(calibration), as_db(golden))

    def float32_layers(self, kept: Collection[str]) -> tuple[str, ...]:
        """The layers that stay float32 if those in `kept` do, in the order they run."""
        made = {layer_of(module) for module in self.ranges} - set(kept)
        return tuple(layer for layer in self.layers if layer not in made)

    def _images(self, session: Any, inputs: Arrays, done: int, total: int) -> Iterator[Images]:
        for index, one in enumerate(one_by_one(inputs)):
            self._tell(done + index, total)
            fed = graph_inputs(self.generator.spec, self.kind, one, bank_of_generator(self.generator))
            yield session.run([IMAGE], fed)[0]

    def _tell(self, done: int, total: int) -> None:
        self.progress.count(f"checking the int8 {self.kind} graph", done, total)


def _batches(model: ExportedModel, inputs: Arrays) -> Batches:
    return [model_inputs(model, one) for one in one_by_one(inputs)]


def _spaced(total: int, count: int) -> list[int]:
    return sorted({index * total // count for index in range(count)})


def _finite(value: float) -> float | None:
    """None for infinity, which JSON does not have."""
    return value if np.isfinite(value) else None
