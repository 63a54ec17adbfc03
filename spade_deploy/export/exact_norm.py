"""Instance and layer norm, written out so that every engine computes their statistics exactly enough.

A map of flat regions repeats a value thousands of times, and a sum of it one value after another rounds the same way
each time. ONNX Runtime adds up a channel like that, in InstanceNormalization and in a mean over several axes: on flat
regions it was off by 7e-4 at 256 x 256, and 2.6e-3 at 512 x 512, where PyTorch is off by 2e-6. So a mean is taken axis
by axis. What rounding has left of the mean after it was taken away is taken away once more. That left 6e-7 and 9e-7.
(OpenVINO joins such means again; `engines/openvino/exact_norms.py` keeps them apart.)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def standardized(x: Tensor, axes: Iterable[int], eps: float) -> Tensor:
    """x with mean 0 and variance 1 over these axes, in the type of x.

    The sums of squares of a half-precision map overflow: the statistics are always float32, or float64 for float64.
    """
    axes = sorted(axes, reverse=True)
    wide = x.float() if x.dtype is torch.float16 else x
    centred = wide - _mean(wide, axes)
    centred = centred - _mean(centred, axes)
    return (centred * torch.rsqrt(_mean(centred * centred, axes) + eps)).to(x.dtype)


def _mean(x: Tensor, axes: Iterable[int]) -> Tensor:
    for axis in axes:
        x = x.mean(dim=axis, keepdim=True)
    return x
