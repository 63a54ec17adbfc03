"""Ask a Triton Inference Server that serves a folder of `spade package --triton`: no spade-deploy installed.

usage: python triton_client.py HOST:PORT MODEL label.png photo.png [instance.png]

It needs tritonclient[http], numpy and Pillow. The model's configuration says all that there is to know: the size, which
ids there are, and what 255 means.
"""

import json
import sys

import numpy as np
import tritonclient.http as triton
from PIL import Image

address, model, label_file, photo_file, *instance_file = sys.argv[1:]
client = triton.InferenceServerClient(address)
config = client.get_model_config(model)
facts = {name: value.get("string_value", "") for name, value in config["parameters"].items()}
rule = json.loads(facts["spade.input_rule"])
height, width = int(facts["spade.height"]), int(facts["spade.width"])  # what the model was trained for


def read(file: str) -> np.ndarray:
    """The integers of a label or instance file, resized with nearest neighbour; of a palette PNG its indices."""
    return np.array(Image.open(file).resize((width, height), Image.Resampling.NEAREST)).astype(np.int32)


label = read(label_file)
for special in (rule[name] for name in ("unknown", "ignored") if name in rule):
    if special["id"] is not None:
        label[label == special["file_value"]] = special["id"]
if label.min() < 0 or label.max() > rule["ids"]["maximum"]:
    sys.exit(f"{label_file} holds the id {label.max()}; the model has 0..{rule['ids']['maximum']}")

maps = {"label": label, "instance": read(instance_file[0]) if instance_file else np.zeros_like(label)}
kinds = {"TYPE_UINT8": ("UINT8", np.uint8), "TYPE_INT32": ("INT32", np.int32), "TYPE_FP32": ("FP32", np.float32)}
inputs = []
for told in config["input"]:  # label; instance and z where the model has edges or styles
    name, (kind, dtype) = told["name"], kinds[told["data_type"]]
    values = maps[name] if name in maps else np.zeros(int(told["dims"][0]))  # z: zeros are the mean style
    batch = np.ascontiguousarray(values[None].astype(dtype))
    inputs.append(triton.InferInput(name, batch.shape, kind))
    inputs[-1].set_data_from_numpy(batch)

answer = client.infer(model, inputs, outputs=[triton.InferRequestedOutput("pixels")])
pixels = answer.as_numpy("pixels")  # N x H x W x 3, uint8 RGB
Image.fromarray(pixels[0]).save(photo_file)
