"""What the OpenAPI description says of the bodies of requests and answers. Its examples work with every model."""

from __future__ import annotations

from typing import Any

from spade_deploy.serving.drawings import KEPT_S
from spade_deploy.serving.patches import INSTANCE_PATCHES, MOST_PATCHES, PATCHES

Schema = dict[str, Any]

_DIRECTIONS = "standard deviations along each main direction of the model's styles, added to the style"
_LENGTHS: Schema = {
    "height": {"type": "integer", "minimum": 1},
    "width": {"type": "integer", "minimum": 1},
    "runs": {
        "type": "array",
        "items": {"type": "integer"},
        "description": "value and length in turn, row by row",
    },
}
_PNG: Schema = {"type": "string", "contentEncoding": "base64", "description": "a PNG in base64, one number per pixel"}
_COMMON: Schema = {
    "seed": {"type": "integer", "minimum": 0, "description": "seed of a random style"},
    "size": {
        "type": "string",
        "description": "HEIGHTxWIDTH; model: the map is resized to the model's size; keep: the map keeps its size",
    },
    "format": {"type": "string", "enum": ["png", "jpeg", "jpg", "webp"]},
    "quality": {"type": "integer", "minimum": 1, "maximum": 100, "description": "quality of jpeg and webp"},
}
_MODEL: Schema = {"model": {"type": "string", "description": "name of the model; without it, the first model"}}
_FILE: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}
_STYLE: Schema = {
    "style": {"type": "array", "items": {"type": "number"}},
    "directions": {"type": "array", "items": {"type": "number"}, "description": _DIRECTIONS},
    "style_photo": {"type": "string", "contentEncoding": "base64"},
}
_EXAMPLE: Schema = {"label": {"height": 64, "width": 64, "runs": [0, 2048, 1, 2048]}, "format": "png"}
EDIT_EXAMPLE: Schema = {
    "drawing": "the header Drawing of the last answer",
    "base": 1,
    PATCHES: [{"x": 8, "y": 4, "height": 2, "width": 3, "runs": [2, 6]}],
    "format": "png",
}
"""An edit of the drawing that the example of a whole map begins, but for its id."""


def whole_map_body() -> Schema:
    """Of a request with a whole map, as JSON or as a form."""
    return _body({"schema": _whole_map(), "example": _EXAMPLE}, _form())


def edits_body() -> Schema:
    """Of `POST /v1/edits`: a whole map, which begins a drawing, or what changed since."""
    examples = {
        "whole map": {"summary": "The whole map, which begins a drawing", "value": _EXAMPLE},
        "edit": {"summary": "What changed since the last answer", "value": EDIT_EXAMPLE},
    }
    return _body({"schema": {"oneOf": [_whole_map(), _edit()]}, "examples": examples}, _form())


def ready_answer() -> Schema:
    """Of `GET /readyz`, where the server takes requests."""
    names = {"type": "array", "items": {"type": "string"}}
    count = {"type": "integer", "minimum": 0, "description": "requests in the queue"}
    body = _object({"status": {"const": "ready"}, "waiting": count, "models": names}, "status", "waiting", "models")
    return {"description": "The server takes requests", "content": {"application/json": {"schema": body}}}


def models_answer() -> Schema:
    """Of `GET /v1/models`."""
    whole, truth, text, perhaps = ({"type": kind} for kind in ("integer", "boolean", "string", ["integer", "null"]))
    number = {**whole, "minimum": 1}
    color = {**text, "pattern": "^#[0-9a-f]{6}$"}
    styles = {
        "z_dim": {**perhaps, "description": "numbers of a style vector; null for a model without one"},
        "from_photo": {**truth, "description": "whether it takes the style of a photo"},
        "directions": {**whole, "minimum": 0, "description": "how many main directions its styles have"},
    }
    size = {"height": number, "width": number, "is_fixed": truth, "multiple_of": number}
    facts = {
        "name": text,
        "sha256": {**text, "pattern": "^[0-9a-f]{64}$", "description": "SHA-256 of the artifact's manifest"},
        "architecture": text,
        "labels": {"type": "array", "items": _all_of({"id": whole, "name": text, "color": color})},
        "unknown_id": {**perhaps, "description": "the id of unknown pixels; null for a model without one"},
        "takes_instances": {**truth, "description": "whether it takes an instance map"},
        "size": _all_of(size),
        "styles": _all_of(styles),
        "samples": {**whole, "minimum": 0, "description": "number of sample label maps"},
        "runtime": _all_of({"name": text, "precision": text, "largest_batch": number}),
    }
    body = _all_of({"models": {"type": "array", "items": _all_of(facts)}})
    return {"description": "The models", "content": {"application/json": {"schema": body}}}


def _body(json: Schema, form: Schema) -> Schema:
    content = {"application/json": json, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


def _whole_map() -> Schema:
    a_map = {"oneOf": [_PNG, _object(_LENGTHS, *_LENGTHS)]}
    return _object({**_COMMON, **_MODEL, **_STYLE, "label": a_map, "instance": a_map}, "label")


def _form() -> Schema:
    style = {"type": "string", "description": "numbers separated by commas"}
    directions = {"type": "string", "description": f"{_DIRECTIONS}; separated by commas"}
    files = dict.fromkeys(("label", "instance", "style_photo"), _FILE)
    return _object({**_COMMON, **_MODEL, **files, "style": style, "directions": directions}, "label")


def _edit() -> Schema:
    place = {
        "x": {"type": "integer", "minimum": 0, "description": "column of its first pixel"},
        "y": {"type": "integer", "minimum": 0, "description": "row of its first pixel"},
    }
    patch = _object({**place, **_LENGTHS}, *place, *_LENGTHS)
    patches = {"type": "array", "maxItems": MOST_PATCHES, "items": patch}
    drawing = {
        "type": "string",
        "description": f"the header Drawing of an answer; known for {KEPT_S / 60:.0f} minutes after the last edit",
    }
    own = {
        "drawing": drawing,
        "base": {"type": "integer", "description": "the header Drawing-Version of the map that the edit builds on"},
        PATCHES: {**patches, "description": "rectangles of the label map that changed"},
        INSTANCE_PATCHES: {**patches, "description": "rectangles of the instance map that changed"},
    }
    return _object({**_COMMON, **_MODEL, **_STYLE, **own}, "drawing", "base", PATCHES)


def _all_of(properties: Schema) -> Schema:
    """An object that has every one of these properties, and no other."""
    return _object(properties, *properties)


def _object(properties: Schema, *required: str) -> Schema:
    return {
        "type": "object",
        "required": list(required),
        "additionalProperties": False,
        "properties": properties,
    }
