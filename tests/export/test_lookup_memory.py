"""What the lookup graph holds in memory at once: the windows of one layer, and no more in all than the plain export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from spade_deploy.bench.inputs import make_segmap
from spade_deploy.bench.plain_export import write_plain_export
from spade_deploy.export.lookup import LookupModel
from spade_deploy.export.onnx_file import write_onnx
from spade_deploy.labels.files import read_instance_map, read_label_map, synthetic_label_maps
from spade_deploy.lookup.tables import graph_inputs
from spade_deploy.runs.checkpoint import save_checkpoint
from spade_deploy.spec import GraphKind, LabelSpec
from tests.support.generators import build_generator
from tests.support.live_memory import ORDERS, live_values, peak_live_bytes


@pytest.mark.parametrize("order", ORDERS)
def test_windows_are_gathered_for_one_layer_at_a_time(order: str, tmp_path: Path) -> None:
    generator = build_generator()
    spec = generator.spec
    write_onnx(LookupModel(generator), tmp_path / "lookup.onnx")
    label, instance = synthetic_label_maps(spec.labels, 64, 96, 1, seed=2)
    fed = graph_inputs(spec, GraphKind.LOOKUP, {"label": label, "instance": instance})
    numbers = {name: len(value) for name, value in fed.items() if name.startswith("patterns")}
    assert len(set(numbers.values())) == len(numbers) == 6  # by their number the windows of a level are told apart
    windows = {(number, 9, spec.hidden_channels) for number in numbers.values()}
    counts = [
        sum(value.shape in windows for value in values) for values in live_values(tmp_path / "lookup.onnx", fed, order)
    ]
    assert max(counts) == 1


def test_windows_wait_for_the_map_that_they_modulate(tmp_path: Path) -> None:
    # An engine that begins with what depends on no map would else hold the windows of all levels at once: in ONNX
    # Runtime Cityscapes' generator takes 390 MB for 256 x 512 pixels, and took 580.
    generator = build_generator()
    write_onnx(LookupModel(generator), tmp_path / "lookup.onnx")
    nodes = onnx.load(str(tmp_path / "lookup.onnx")).graph.node
    producer = {name: node for node in nodes for name in node.output}

    def before(node: Any, found: dict[str, Any]) -> dict[str, Any]:
        for name in node.input:
            if name in producer and name not in found:
                found[name] = producer[name]
                before(producer[name], found)
        return found

    gathers = [node for node in nodes if node.op_type == "Gather" and is_made_by(producer, node.input[0], "Split")]
    done = [sum(other.op_type == "Conv" for other in before(node, {}).values()) for node in gathers]
    blocks = enumerate(generator.spec.blocks)
    # norm_0 and norm_s wait for both convolutions of all blocks before, norm_1 for one more.
    expected = [[2 * k, 2 * k + 1, *([2 * k] if block.has_shortcut else [])] for k, block in blocks]
    assert sorted(done) == sorted(count for counts in expected for count in counts)


def is_made_by(producer: dict[str, Any], name: str, operator: str) -> bool:
    """Whether a value comes out of a node of that operator."""
    return name in producer and producer[name].op_type == operator


@pytest.mark.shared
def test_the_graph_holds_no_more_than_the_plain_export_on_coco_samples(tmp_path: Path, shared_folder: Path) -> None:
    # An eighth of COCO-Stuff's generator in all channels. Measured: at most 0.77 of the plain export's bytes; with the
    # windows of a level's layers gathered together 1.14.
    data = shared_folder / "data" / "coco_stuff_sample"
    known = LabelSpec(182, has_dontcare=True, has_edges=True)
    labels = LabelSpec(22, has_dontcare=True, has_edges=True)
    generator = build_generator(
        labels=labels, base_channels=8, hidden_channels=16, height=256, width=256, training_steps=1
    )
    spec = generator.spec
    write_onnx(LookupModel(generator), tmp_path / "lookup.onnx")
    save_checkpoint(tmp_path / "step_0", generator, step=0, origin="import")
    write_plain_export(tmp_path / "step_0", tmp_path / "plain.onnx")
    segmap, tables = [], []
    for name in ("000000284465", "000000350505"):  # of the 13 samples those with the most patterns
        given: dict[str, Any] = {
            "label": read_label_map(data / "train_label" / f"{name}.png", known, (256, 256))[None] % labels.num_ids,
            "instance": read_instance_map(data / "train_inst" / f"{name}.png", (256, 256))[None],
        }
        segmap.append(make_segmap(spec, given))
        tables.append(graph_inputs(spec, GraphKind.LOOKUP, given))
    for order in ORDERS:
        plain = peak_live_bytes(tmp_path / "plain.onnx", {"segmap": segmap[0]}, order)
        for fed in tables:
            assert peak_live_bytes(tmp_path / "lookup.onnx", fed, order) <= plain
