"""How good generated images are: distances between sets of images, and whether they show what the labels say.

This needs NumPy and ONNX Runtime, not PyTorch. The networks that judge the images (an extractor of features, a
segmenter) are ONNX files, and every figure names the file that it was measured with.
"""

from spade_deploy.metrics.confusion import ClassScore, ConfusionMatrix
from spade_deploy.metrics.distances import (
    FrechetDistance,
    KernelDistance,
    diversity,
    frechet_distance,
    kernel_distance,
)
from spade_deploy.metrics.extractor import OnnxExtractor
from spade_deploy.metrics.onnx_images import Preprocessing
from spade_deploy.metrics.pixels import PixelError
from spade_deploy.metrics.segmenter import OnnxSegmenter

HIGHER_IS_BETTER = {
    "frechet": False,
    "kernel": False,
    "miou": True,
    "accuracy": True,
    "lpips": False,
    "l1": False,
    "psnr": True,
}
"""Every figure by which models are ordered, and whether higher values are better."""

__all__ = [
    "HIGHER_IS_BETTER",
    "ClassScore",
    "ConfusionMatrix",
    "FrechetDistance",
    "KernelDistance",
    "OnnxExtractor",
    "OnnxSegmenter",
    "PixelError",
    "Preprocessing",
    "diversity",
    "frechet_distance",
    "kernel_distance",
]
