"""Turn VGG16's original ImageNet convolutions (.npz, keys convB_I.w/.b) into torchvision's state-dict form.

    python scripts/convert_vgg16_npz.py vgg16_imagenet_fp16.npz vgg16.safetensors

The original network reads BGR, 0..255, minus its mean m; torchvision's reads RGB t = (rgb - mu) / sigma with rgb in
0..1. So x = 255 rgb - m = 255 sigma t + (255 mu - m), and the first convolution takes it up exactly:

    W'[:, c] = 255 sigma_c W[:, c]                     (channels in RGB order)
    b'       = b + sum over c and taps of W[:, c] (255 mu_c - m_c)

computed in double precision. One difference is left: zero padding means x = 0 to the original and t = 0, that is
x = 255 mu - m (0.005, 0.5 and 0.15 of 255), to the other; the outermost pixels of relu1_1 differ by about that.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

MEAN_RGB = np.array([123.68, 116.779, 103.939])
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_STD = np.array([0.229, 0.224, 0.225])
# torchvision's index of each convolution: a ReLU follows every one, a pooling every block.
INDICES = {
    **{"conv1_1": 0, "conv1_2": 2, "conv2_1": 5, "conv2_2": 7, "conv3_1": 10, "conv3_2": 12, "conv3_3": 14},
    **{"conv4_1": 17, "conv4_2": 19, "conv4_3": 21, "conv5_1": 24},
}


def convert(original: dict[str, NDArray[np.floating]]) -> dict[str, NDArray[np.float32]]:
    """original: OIHW weights and biases by the names of INDICES. Returns fp32 arrays by torchvision's keys."""
    converted = {}
    for name, index in INDICES.items():
        weight, bias = original[f"{name}.w"].astype(np.float64), original[f"{name}.b"].astype(np.float64)
        if name == "conv1_1":
            weight = weight[:, ::-1]  # BGR to RGB
            bias = bias + np.einsum("ocij,c->o", weight, 255 * IMAGENET_MEAN - MEAN_RGB)
            weight = weight * (255 * IMAGENET_STD)[None, :, None, None]
        converted[f"features.{index}.weight"] = np.ascontiguousarray(weight, dtype=np.float32)
        converted[f"features.{index}.bias"] = bias.astype(np.float32)
    return converted


def main(arguments: list[str]) -> int:
    """Convert a file; returns the exit code."""
    if len(arguments) != 2:
        print("usage: convert_vgg16_npz.py INPUT.npz OUTPUT.safetensors", file=sys.stderr)
        return 2
    source, target = map(Path, arguments)
    with np.load(source, allow_pickle=False) as archive:
        missing = [f"{name}.{part}" for name in INDICES for part in "wb" if f"{name}.{part}" not in archive]
        if missing:
            print(f"{source}: {missing[0]} is missing", file=sys.stderr)
            return 1
        converted = convert(dict(archive))
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(converted, target)
    print(f"wrote {target}: {len(converted)} tensors up to relu5_1")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
