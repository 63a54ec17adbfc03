"""Proof of precision on inspectors' answers of both kinds: layers by name, and fused kernels with metadata."""

from __future__ import annotations

import json
from typing import Any

import pytest

from spade_deploy.engines.trt_proof import EngineLayer, TypedLayer, engine_layers, proof_text, prove
from spade_deploy.errors import BuildError
from spade_deploy.spec import Precision

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


@pytest.mark.parametrize("text", ["", "no json", "{}", "[]", '{"Layers": null}'])
def test_an_answer_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(BuildError, match="cannot be read"):
        engine_layers(text)
