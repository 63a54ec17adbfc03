"""The choices of the package, each an enum: networks, graphs, precisions, and engines.

Each is defined only here, and the command line offers its members.
"""

from __future__ import annotations

from enum import StrEnum


class Architecture(StrEnum):
    """Which network it is: SPADE, one of the baselines that SPADE's paper compares it with, or one that followed.

    spade: Park et al. 2019. pix2pixhd: the global generator of Wang et al. 2018. crn: the cascaded refinement network
    of Chen and Koltun 2017. sims: Qi et al. 2018, segments of training photos that a network completes. clade: Tan et
    al. 2021, SPADE's generator with a table row a class as modulation. oasis: Schönfeld et al. 2021, SPADE's blocks
    whose modulation sees noise, too.
    """

    SPADE = "spade"
    PIX2PIXHD = "pix2pixhd"
    CRN = "crn"
    SIMS = "sims"
    CLADE = "clade"
    OASIS = "oasis"


class NormType(StrEnum):
    """How features are normalised. Layer norm is that of the cascaded refinement network, and has parameters.

    Batch and sync batch differ in training only.
    """

    BATCH = "batch"
    SYNC_BATCH = "sync_batch"
    INSTANCE = "instance"
    LAYER = "layer"


class Upsampling(StrEnum):
    """How often the generator doubles its latent: normal 5, more 6, most 7 times."""

    NORMAL = "normal"
    MORE = "more"
    MOST = "most"

    @property
    def doublings(self) -> int:
        return {"normal": 5, "more": 6, "most": 7}[self.value]


class FirstInput(StrEnum):
    """The input of the generator's first layer: the label map itself, or noise."""

    SEGMAP = "segmap"
    NOISE = "noise"


class Precision(StrEnum):
    """The type of a graph's weights and activations, and of the arithmetic that runs it.

    BF16 is arithmetic alone: no file has it, an engine runs the fp32 graph in it (`exported` is that graph's).
    """

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    BF16 = "bf16"

    @property
    def exported(self) -> Precision:
        """The precision of the graph that runs: fp32 for bf16, and its own for all others."""
        return Precision.FP32 if self is Precision.BF16 else self


EXPORTED = tuple(precision for precision in Precision if precision is precision.exported)
"""The precisions that a file can have."""


class PrecisionChoice(StrEnum):
    """What a user asks for: a precision, or the fastest of those whose images are good enough."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    FASTEST = "fastest"


class GraphKind(StrEnum):
    """Dense: convolutions of one-hot maps, as trained. Lookup: a table row for each pattern of labels, gathered."""

    DENSE = "dense"
    LOOKUP = "lookup"


class GraphSet(StrEnum):
    """Which graphs an export writes: all that the architecture has, or the dense one alone."""

    ALL = "all"
    DENSE = "dense"


class GraphChoice(StrEnum):
    """Which graph runs. On a CPU `auto` takes, map by map, the lookup graph if it was measured to be faster."""

    AUTO = "auto"
    DENSE = "dense"
    LOOKUP = "lookup"


class Backend(StrEnum):
    """Where an artifact runs. Auto: a TensorRT engine that fits, else CUDA where it really loads, else the CPU.

    On the CPU `auto` takes the engine that was measured to be the fastest. CPU and CUDA are ONNX Runtime's, OpenVINO
    runs on the CPU, too. TensorRT is an engine of `spade build`, of TensorRT or of TensorRT for RTX; ORT_TENSORRT is
    ONNX Runtime's own TensorRT provider, which builds when it is first run.
    """

    AUTO = "auto"
    CPU = "cpu"
    OPENVINO = "openvino"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    ORT_TENSORRT = "ort-tensorrt"


class Flavour(StrEnum):
    """Which library an engine is for: TensorRT, or TensorRT for RTX. Neither loads the other's engines."""

    TENSORRT = "tensorrt"
    RTX = "rtx"


class ResizePolicy(StrEnum):
    """Model: every map is resized to the model's size, nearest, as in training. Never: its own size must fit."""

    MODEL = "model"
    NEVER = "never"


class Naming(StrEnum):
    """How the image of a file is named: by its stem, by its path below a common folder, or by what keeps all apart."""

    AUTO = "auto"
    STEM = "stem"
    PATH = "path"
