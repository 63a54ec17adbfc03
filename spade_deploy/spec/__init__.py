"""The frozen facts of a model: what its labels mean, how its generator is built, in which precision and size it runs.

Every dataclass checks itself when it is made, so a spec that exists can be built. `to_json` and `from_json` are exact
inverses; checkpoints and the artifact's manifest hold this JSON. The enums are here, too, so that the command line can
offer them without loading NumPy.
"""

from spade_deploy.spec.architectures import (
    CRN_WIDTHS,
    FEATURE_CHANNELS,
    MODULATED,
    NORMS,
    OASIS_NOISE,
    PIX2PIXHD_BLOCKS,
    PIX2PIXHD_EDGE_KERNEL,
    PIX2PIXHD_HALVINGS,
    SIMS_WIDTHS,
)
from spade_deploy.spec.blocks import BlockSpec, least_base, usual_widths
from spade_deploy.spec.choices import (
    EXPORTED,
    Architecture,
    Backend,
    FirstInput,
    Flavour,
    GraphChoice,
    GraphKind,
    GraphSet,
    Naming,
    NormType,
    Precision,
    PrecisionChoice,
    ResizePolicy,
    Upsampling,
)
from spade_deploy.spec.discriminator import DiscriminatorSpec
from spade_deploy.spec.generator import NETWORK, GeneratorSpec
from spade_deploy.spec.labels import UNKNOWN_VALUE, LabelSpec, Rgb
from spade_deploy.spec.profile import Extent, ShapeProfile
from spade_deploy.spec.rounding import RoundingError
from spade_deploy.spec.sizes import MAX_BATCH, MAX_SIDE, parse_size

__all__ = [
    "CRN_WIDTHS",
    "EXPORTED",
    "FEATURE_CHANNELS",
    "MAX_BATCH",
    "MAX_SIDE",
    "MODULATED",
    "NETWORK",
    "NORMS",
    "OASIS_NOISE",
    "PIX2PIXHD_BLOCKS",
    "PIX2PIXHD_EDGE_KERNEL",
    "PIX2PIXHD_HALVINGS",
    "SIMS_WIDTHS",
    "UNKNOWN_VALUE",
    "Architecture",
    "Backend",
    "BlockSpec",
    "DiscriminatorSpec",
    "Extent",
    "FirstInput",
    "Flavour",
    "GeneratorSpec",
    "GraphChoice",
    "GraphKind",
    "GraphSet",
    "LabelSpec",
    "Naming",
    "NormType",
    "Precision",
    "PrecisionChoice",
    "ResizePolicy",
    "Rgb",
    "RoundingError",
    "ShapeProfile",
    "Upsampling",
    "least_base",
    "parse_size",
    "usual_widths",
]
