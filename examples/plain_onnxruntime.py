"""Run an exported generator with plain onnxruntime: no spade-deploy installed, 15 lines.

usage: python plain_onnxruntime.py ARTIFACT/generator.fp32.onnx label.png photo.png [instance.png]
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

graph, label_file, photo_file, *instance_file = sys.argv[1:]
session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
size = int(facts["spade.width"]), int(facts["spade.height"])  # what it was trained for
kinds = {"tensor(uint8)": np.uint8, "tensor(int32)": np.int32}
feed = {}
for entry, file in zip(session.get_inputs(), [label_file, *instance_file], strict=False):
    ids = np.asarray(Image.open(file).resize(size, Image.Resampling.NEAREST)).astype(kinds[entry.type])
    feed[entry.name] = ids[None]  # N x H x W; H and W multiples of 32 for upsampling 'normal'
(pixels,) = session.run(["pixels"], feed)  # N x H x W x 3, uint8 RGB
Image.fromarray(pixels[0]).save(photo_file)
