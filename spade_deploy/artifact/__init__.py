"""The artifact: the folder that is deployed. This package alone knows its layout.

    manifest.json            the facts: generator spec, graphs, source, versions, every other file's sha256
    generator.fp32.onnx      label ids in, pixels out; generator.fp16.onnx beside it after `spade export --fp16`
    encoder.onnx             photo in, mean and log variance of its style out, or features of its instances; only a
                             model with an encoder has it
    bank.npz                 segments of training photos; only SIMS has it
    style_directions.json    the main directions of the style vector; only a model with styles has it
    golden/inputs.npz        what the untouched PyTorch module was fed ...
    golden/outputs.npz       ... and what it answered: enough to validate where PyTorch is not installed
    report.json report.html  the validation that the export passed
    README.md                the model card: usage, figures, limits, licence

Files that the manifest does not name are never read. Engines are made later and often on another machine; they lie in
engines/ and have manifests of their own: see `engines.py`.
"""

from spade_deploy.artifact.engines import (
    EngineEntry,
    engine_name,
    engine_path,
    list_engines,
    read_engine,
    read_timing_cache,
    timing_cache_path,
    whole_engines,
    write_engine,
    write_timing_cache,
)
from spade_deploy.artifact.features import region_means, with_features
from spade_deploy.artifact.folder import (
    ENCODER_ONNX,
    MODEL_CARD,
    REPORT_HTML,
    REPORT_JSON,
    Artifact,
    graph_file,
    rewrite_manifest,
    write_manifest,
)
from spade_deploy.artifact.golden import Golden, write_golden
from spade_deploy.artifact.graph_facts import ENCODER, LICENSE, UNKNOWN_LICENSE, description, graph_facts, model_facts
from spade_deploy.artifact.manifest import (
    BANK,
    FORMAT_VERSION,
    GOLDEN_INPUTS,
    GOLDEN_OUTPUTS,
    MANIFEST,
    EncoderGraph,
    FileFact,
    Graph,
    Manifest,
    Source,
)
from spade_deploy.artifact.place import carry_engines, foreign_files, free_place, require_replaceable, writing
from spade_deploy.artifact.style_directions import MOST_DIRECTIONS, STYLE_DIRECTIONS, write_style_directions
from spade_deploy.artifact.tensors import (
    CANVAS,
    FEATURES,
    IMAGE,
    INSTANCE,
    LABEL,
    LOGITS,
    LOGVAR,
    MU,
    PHOTO,
    PIXELS,
    POSITION,
    Arrays,
    TensorInfo,
    Z,
    default_style,
    encoder_tensors,
    golden_tensors,
    graph_tensors,
    input_rule,
    input_tensors,
    joined,
    mismatch,
    one_by_one,
    output_tensors,
    style_meaning,
)

__all__ = [
    "BANK",
    "CANVAS",
    "ENCODER",
    "ENCODER_ONNX",
    "FEATURES",
    "FORMAT_VERSION",
    "GOLDEN_INPUTS",
    "GOLDEN_OUTPUTS",
    "IMAGE",
    "INSTANCE",
    "LABEL",
    "LICENSE",
    "LOGITS",
    "LOGVAR",
    "MANIFEST",
    "MODEL_CARD",
    "MOST_DIRECTIONS",
    "MU",
    "PHOTO",
    "PIXELS",
    "POSITION",
    "REPORT_HTML",
    "REPORT_JSON",
    "STYLE_DIRECTIONS",
    "UNKNOWN_LICENSE",
    "Arrays",
    "Artifact",
    "EncoderGraph",
    "EngineEntry",
    "FileFact",
    "Golden",
    "Graph",
    "Manifest",
    "Source",
    "TensorInfo",
    "Z",
    "carry_engines",
    "default_style",
    "description",
    "encoder_tensors",
    "engine_name",
    "engine_path",
    "foreign_files",
    "free_place",
    "golden_tensors",
    "graph_facts",
    "graph_file",
    "graph_tensors",
    "input_rule",
    "input_tensors",
    "joined",
    "list_engines",
    "mismatch",
    "model_facts",
    "one_by_one",
    "output_tensors",
    "read_engine",
    "read_timing_cache",
    "region_means",
    "require_replaceable",
    "rewrite_manifest",
    "style_meaning",
    "timing_cache_path",
    "whole_engines",
    "with_features",
    "write_engine",
    "write_golden",
    "write_manifest",
    "write_style_directions",
    "write_timing_cache",
    "writing",
]
