"""Proof of precision on inspectors' answers of both kinds: layers by name, and fused kernels with metadata."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from spade_deploy.engines.tensorrt.build import read_engine_layers
from spade_deploy.engines.tensorrt.key import BuildOptions
from spade_deploy.engines.tensorrt.library import Library
from spade_deploy.engines.tensorrt.proof import EngineLayer, TypedLayer, engine_layers, proof_text, prove, typed_layers
from spade_deploy.errors import BuildError
from spade_deploy.spec import Flavour, Precision

TYPED = [
    TypedLayer("node_conv_1", "convolution", "fp16"),
    TypedLayer("node_conv_2", "convolution", "fp16"),
    TypedLayer("node_conv_img", "convolution", "fp32"),
]


def answer(first: str, second: str) -> str:
    """One layer by name, one kernel into which a convolution and an activation were fused."""

    def tensor(name: str, described: str) -> dict[str, Any]:
        return {"Name": name, "Dimensions": [1, 8, 32, 32], "Format/Datatype": described}

    return json.dumps(
        {
            "Layers": [
                {
                    "Name": "node_conv_1 + node_leaky_relu",
                    "LayerType": "CaskConvolution",
                    "Inputs": [tensor("a", first)],
                    "Outputs": [tensor("b", first)],
                    "Metadata": "[ONNX Layer: node_conv_1]\u001e[ONNX Layer: node_leaky_relu]",
                },
                {
                    "Name": "__myl_ConvAddFused_0x1234",
                    "LayerType": "conv",
                    "Inputs": [tensor("b", second)],
                    "Outputs": [tensor("c", second)],
                    "Metadata": "[ONNX Layer: node_conv_2]\u001e[ONNX Layer: node_add]",
                },
                {"Name": "reformat", "LayerType": "Reformat", "Inputs": [tensor("c", "Row major linear FP32")]},
            ],
            "Bindings": ["label", "pixels"],
        }
    )


def test_an_engine_of_the_asked_precision_is_proved() -> None:
    layers = engine_layers(answer("Channel major FP16 format where channel % 8 == 0", "Half"))
    proof = prove(Precision.FP16, TYPED, layers)
    assert (proof.total, proof.asked, proof.reached, proof.of_engine) == (3, 2, 2, True)
    assert layers[1] == EngineLayer(
        "__myl_ConvAddFused_0x1234", "conv", ("fp16",), ("node_conv_2", "node_add", "__myl_ConvAddFused_0x1234")
    )
    assert proof_text(proof.to_json()) == "2 of 3 convolutions and products in fp16: read from the engine itself"


@pytest.mark.parametrize(("first", "second"), [("Half", "Row major linear FP32"), ("Row major linear FP32", "Half")])
def test_a_layer_that_silently_became_float32_fails_the_build(first: str, second: str) -> None:
    with pytest.raises(BuildError, match=r"not fp16: 1 of 2 layers run in another type, the first node_conv_. in fp32"):
        prove(Precision.FP16, TYPED, engine_layers(answer(first, second)))


def test_a_graph_without_the_precision_fails_the_build() -> None:
    with pytest.raises(BuildError, match=r"no convolution or product in int8: 2 in fp16, 1 in fp32") as caught:
        prove(Precision.INT8, TYPED, None)
    assert "spade export --int8" in str(caught.value.hint)


def test_an_engine_that_cannot_be_read_is_not_said_to_have_been() -> None:
    for layers in (None, engine_layers(json.dumps({"Layers": ["{ForeignNode[a...b]}"]}))):
        proof = prove(Precision.FP16, TYPED, layers)
        assert not proof.of_engine
        assert "by the types of the network" in proof_text(proof.to_json())


# --- An engine that shows some of its layers --------------------------------------------------------------------------


def shown(*entries: tuple[str, str, str]) -> list[EngineLayer]:
    """Layers of an engine: their names, their kind, the type of what goes in and out."""
    layers = [
        {"Name": name, "LayerType": kind, "Inputs": [{"Format/Datatype": type_}], "Outputs": []}
        for name, kind, type_ in entries
    ]
    return engine_layers(json.dumps({"Layers": layers}))


def asked_for(*names: str) -> list[TypedLayer]:
    return [TypedLayer(name, "convolution", "fp16") for name in names]


REGION = ("{ForeignNode[c...e]}", "Myelin", "Half")


def test_layers_that_cannot_be_seen_are_not_counted_as_seen() -> None:
    typed = [*asked_for("a", "b", "c"), TypedLayer("d", "convolution", "fp32")]
    proof = prove(Precision.FP16, typed, shown(("a + relu", "CaskConvolution", "Half"), ("b", "conv", "Half"), REGION))
    assert (proof.total, proof.asked, proof.reached, proof.of_engine) == (4, 3, 2, True)
    assert proof_text(proof.to_json()) == (
        "2 of 4 convolutions and products in fp16: read from the engine itself; 1 more by the types of the network, not"
        " seen in the engine"
    )


@pytest.mark.parametrize("seen", [1, 2, 3, 4, 5, 6])
def test_at_least_half_of_the_layers_must_be_seen(seen: int) -> None:
    names = "abcdef"
    layers = shown(*((name, "CaskConvolution", "Half") for name in names[:seen]), REGION)
    if seen >= 3:
        assert prove(Precision.FP16, asked_for(*names), layers).reached == seen
        return
    with pytest.raises(BuildError, match=rf"not proved to be fp16: only {seen} of 6 .* that cannot is {names[seen]}$"):
        prove(Precision.FP16, asked_for(*names), layers)


def test_one_of_three_layers_is_no_proof_of_three() -> None:
    with pytest.raises(BuildError, match="only 1 of 3 layers can be seen in it, and at least half must be"):
        prove(Precision.FP16, asked_for("a", "b", "c"), shown(("a", "CaskConvolution", "Half")))


def test_a_layer_in_another_type_fails_however_few_are_seen() -> None:
    layers = shown(("a", "CaskConvolution", "Half"), ("b", "CaskConvolution", "Float"), REGION)
    with pytest.raises(BuildError, match="not fp16: 1 of 6 layers run in another type, the first b in fp32"):
        prove(Precision.FP16, asked_for(*"abcdef"), layers)


def test_convolutions_that_share_an_input_are_told_apart() -> None:
    """gamma and beta of one hidden map become one kernel."""
    layers = shown(("gamma + relu || beta", "CaskConvolution", "Half"))
    assert prove(Precision.FP16, asked_for("gamma", "beta"), layers).reached == 2


@pytest.mark.parametrize(
    "entry",
    [
        ("Reformatting CopyNode for Input Tensor 0 to z + a + b", "Reformat", "Half"),
        ("a + b", "NoOp", "Half"),
        ("{ForeignNode[a...b]} + a + b", "Myelin", "Half"),
        ("a + b", "CaskConvolution", ""),
    ],
    ids=["reformat", "no operation", "region", "no types"],
)
def test_what_computes_nothing_or_hides_its_layers_proves_nothing(entry: tuple[str, str, str]) -> None:
    proof = prove(Precision.FP16, asked_for("a", "b"), shown(entry))
    assert not proof.of_engine
    assert "inspector shows none of them in the engine" in proof_text(proof.to_json())
    with pytest.raises(BuildError, match="the first a in fp32"):
        prove(Precision.FP16, asked_for("a", "b"), shown(entry, ("a + b", "CaskConvolution", "Float")))


@pytest.mark.parametrize("text", ["", "no json", "{}", "[]", '{"Layers": null}'])
def test_an_answer_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(BuildError, match="cannot be read"):
        engine_layers(text)


def one_kernel(inputs: list[str], outputs: list[str]) -> list[EngineLayer]:
    tensors = {
        side: [{"Format/Datatype": each} for each in types] for side, types in (("In", inputs), ("Out", outputs))
    }
    layer = {"Name": "k", "LayerType": "conv", "Metadata": "[ONNX Layer: node_conv_1]"}
    return engine_layers(json.dumps({"Layers": [{**layer, "Inputs": tensors["In"], "Outputs": tensors["Out"]}]}))


def test_a_kernel_has_the_types_of_what_goes_in_and_of_what_comes_out() -> None:
    """A cast that was fused behind a convolution makes its output float32: what it multiplies is what counts."""
    asked = [TypedLayer("node_conv_1", "convolution", "fp16")]
    for inputs, outputs in ((["Half"], ["Float"]), (["Half", "Half"], ["Half"]), (["Half", "Float"], ["Half"])):
        layers = one_kernel(inputs, outputs)
        assert layers[0].types == (("fp16", "fp32") if "Float" in inputs + outputs else ("fp16",))
        assert prove(Precision.FP16, asked, layers).reached == 1
    with pytest.raises(BuildError, match="node_conv_1 in fp32"):
        prove(Precision.FP16, asked, one_kernel(["Float"], ["Float"]))
    with pytest.raises(BuildError, match="node_conv_1 in fp32"):
        prove(Precision.INT8, [TypedLayer("node_conv_1", "convolution", "int8")], one_kernel(["Float"], ["Float"]))


class Tensor:
    is_shape_tensor = False

    def __init__(self, name: str, dtype: str) -> None:
        self.name, self.dtype = name, SimpleNamespace(name=dtype)


class Network:
    """A typed network: layers as (kind, name, inputs, output)."""

    def __init__(self, *layers: tuple[str, str, list[Tensor], Tensor]) -> None:
        self.layers = [
            SimpleNamespace(
                type=SimpleNamespace(name=kind),
                name=name,
                num_inputs=len(inputs),
                num_outputs=1,
                get_input=inputs.__getitem__,
                get_output=lambda _, output=output: output,
            )
            for kind, name, inputs, output in layers
        ]
        self.num_layers, self.get_layer = len(self.layers), self.layers.__getitem__


@pytest.mark.parametrize(
    ("left", "right", "expected"), [(1, 1, "int8"), (1, 0, "fp32"), (0, 1, "fp32"), (0, 0, "fp32")]
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_is_int8_where_both_of_its_sides_are_whatever_its_bias_is(
    left: int, right: int, expected: str, has_bias: bool
) -> None:
    """The bias of an int8 convolution stays float32, by the recipe of the export: it is added, not multiplied."""
    x, w, bias = Tensor("x", "FLOAT"), Tensor("w", "FLOAT"), Tensor("bias", "FLOAT")
    made = [Tensor("x.dequantized", "FLOAT"), Tensor("w.dequantized", "FLOAT")]
    moved = Tensor("w.moved", "FLOAT")
    network = Network(
        ("DEQUANTIZE", "d0", [Tensor("q0", "INT8")], made[0]),
        ("DEQUANTIZE", "d1", [Tensor("q1", "INT8")], made[1]),
        ("SHUFFLE", "s", [made[1]], moved),
        ("CONSTANT", "b", [], bias),
        (
            "CONVOLUTION",
            "conv",
            [made[0] if left else x, moved if right else w, *([bias] if has_bias else [])],
            Tensor("y", "FLOAT"),
        ),
    )
    assert typed_layers(None, network) == [TypedLayer("conv", "convolution", expected)]


def test_what_only_adds_or_moves_is_no_work() -> None:
    half, y = Tensor("x", "HALF"), Tensor("y", "HALF")
    network = Network(
        ("ELEMENTWISE", "add", [half, half], y),
        ("CAST", "cast", [half], y),
        ("MATRIX_MULTIPLY", "product", [half, half], y),
        ("DECONVOLUTION", "up", [half, half, Tensor("bias", "FLOAT")], y),
    )
    assert [layer.name for layer in typed_layers(None, network)] == ["product", "up"]
    assert {layer.type for layer in typed_layers(None, network)} == {"fp16"}


@pytest.mark.parametrize("is_compatible", [False, True])
def test_the_inspector_reads_an_engine_that_brings_code_only_where_it_was_built_so(is_compatible: bool) -> None:
    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, _: Any) -> None: ...

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            if content == b"a version-compatible plan" and not self.engine_host_code_allowed:
                return None
            return SimpleNamespace(
                create_engine_inspector=lambda: SimpleNamespace(get_engine_information=lambda _: '{"Layers": []}')
            )

    class Logger:
        ERROR = 1

        def __init__(self, _: int) -> None: ...

    trt: Any = SimpleNamespace(Runtime=Runtime, Logger=Logger, LayerInformationFormat=SimpleNamespace(JSON=1))
    library, options = Library(trt, Flavour.TENSORRT, "11.4.0.106"), BuildOptions(version_compatible=is_compatible)
    if is_compatible:
        assert read_engine_layers(library, b"a version-compatible plan", options) == []
    else:
        assert read_engine_layers(library, b"a plan", options) == []
        with pytest.raises(BuildError, match="built an engine, but cannot load it"):
            read_engine_layers(library, b"a version-compatible plan", options)
