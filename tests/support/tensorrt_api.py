"""What our sources use of TensorRT's Python API, read from their syntax; and what a TensorRT has, asked of it."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path

MODULE = "module"

CLASS_OF_NAME = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "tensor": "ITensor",
    "error": "ParserError",
    "cache": "ITimingCache",
}
"""What a parameter, an attribute of self or the result of a function of ours is where it has that name and is annotated
`Any`: a class of TensorRT can be named only when TensorRT is there."""

CLASS_OF_RESULT = {
    ("Builder", "create_network"): "INetworkDefinition",
    ("Builder", "create_builder_config"): "IBuilderConfig",
    ("Builder", "create_optimization_profile"): "IOptimizationProfile",
    ("Builder", "build_serialized_network"): "IHostMemory",
    ("INetworkDefinition", "get_layer"): "ILayer",
    ("INetworkDefinition", "get_input"): "ITensor",
    ("INetworkDefinition", "get_output"): "ITensor",
    ("ILayer", "get_input"): "ITensor",
    ("ILayer", "get_output"): "ITensor",
    ("ILayer", "type"): "LayerType",
    ("ITensor", "dtype"): "DataType",
    ("OnnxParser", "get_error"): "ParserError",
    ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
    ("ITimingCache", "serialize"): "IHostMemory",
    ("Runtime", "deserialize_cuda_engine"): "ICudaEngine",
    ("ICudaEngine", "create_execution_context"): "IExecutionContext",
    ("ICudaEngine", "create_engine_inspector"): "EngineInspector",
    ("ICudaEngine", "create_runtime_config"): "IRuntimeConfig",
    ("ICudaEngine", "get_tensor_dtype"): "DataType",
}
"""What a method returns, or a property is."""


@dataclass(frozen=True, order=True)
class Use:
    """An attribute of a class, or of the module itself, and the first place where it is used."""

    owner: str
    name: str
    where: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.where}: {self.owner}.{self.name}"


@dataclass
class Uses:
    """needed: used outright. optional: asked for by getattr or hasattr first, so that it may be missing."""

    needed: set[Use] = field(default_factory=set)
    optional: set[Use] = field(default_factory=set)


def uses_of(sources: dict[str, str]) -> Uses:
    """All that sources, by file name, use of TensorRT."""
    uses = Uses()
    trees = {name: ast.parse(text) for name, text in sources.items()}
    makers = {
        node.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.returns is not None and ast.unparse(node.returns) == "Any"
    }
    for name, tree in trees.items():
        # Twice: what a class keeps in self is known only when its methods were read.
        attributes: dict[str, str | None] = {}
        for _ in range(2):
            _Reader(name, uses, attributes, makers).visit(tree)
    return uses


def read_sources(engines: Path) -> dict[str, str]:
    """The sources that speak to TensorRT, by their file's name."""
    return {path.name: path.read_text("utf-8") for path in sorted((engines / "tensorrt").glob("*.py"))}


class _Reader(ast.NodeVisitor):
    """Follows what each name is: the module, one of its classes ('type:X'), a method ('call:X.m'), an object ('X').

    makers: functions of ours that return `Any`, such as a context.
    """

    def __init__(self, file: str, uses: Uses, attributes: dict[str, str | None], makers: set[str]) -> None:
        self.file, self.uses, self.attributes, self.makers = file, uses, attributes, makers
        self.names: dict[str, str | None] = {"trt": MODULE, "library": "Library", "Library": None}

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = dict(self.names)
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            self.names[argument.arg] = self._of_argument(argument)
        self.generic_visit(node)
        self.names = outer

    def _of_argument(self, argument: ast.arg) -> str | None:
        annotation = ast.unparse(argument.annotation) if argument.annotation else "Any"
        if annotation == "Library" or (argument.arg == "library" and annotation == "Any"):
            return "Library"
        if annotation == "ModuleType" or (argument.arg == "trt" and annotation == "Any"):
            return MODULE
        return CLASS_OF_NAME.get(argument.arg) if annotation == "Any" else None

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if node.value is not None:
            self._bind(node.target, node.value)
        if isinstance(node.target, ast.Attribute) and ast.unparse(node.annotation) == "Any":
            known = CLASS_OF_NAME.get(node.target.attr.lstrip("_"))
            if known is not None:
                self.attributes.setdefault(node.target.attr, known)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            for one, of in zip(target.elts, value.elts, strict=True):
                self._bind(one, of)
        elif isinstance(target, ast.Name):
            self.names[target.id] = self._what(value)
            if isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in self.makers:
                self.names[target.id] = CLASS_OF_NAME.get(target.id)
        elif isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
            known = self._what(value)
            if known is not None:
                self.attributes[target.attr] = known

    def visit_For(self, node: ast.For) -> None:
        self._forget(node.target)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._forget(node.target)
        self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            self._visit_comprehended(node)
        else:
            super().generic_visit(node)

    def _visit_comprehended(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        outer = dict(self.names)
        for generator in node.generators:  # before the element, which stands first
            self.visit(generator)
        super().generic_visit(node)
        self.names = outer

    def _forget(self, target: ast.expr) -> None:
        for name in ast.walk(target):
            if isinstance(name, ast.Name):
                self.names[name.id] = None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._what(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        self._what(node)
        self.generic_visit(node)

    def _what(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._of_attribute(node)
        if isinstance(node, ast.Call):
            return self._of_call(node)
        if isinstance(node, ast.IfExp):
            return self._what(node.body) or self._what(node.orelse)
        return None

    def _of_attribute(self, node: ast.Attribute) -> str | None:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return self.attributes.get(node.attr)
        owner = self._what(node.value)
        if owner == "Library":
            return MODULE if node.attr == "module" else None
        return None if owner is None else self._used(owner, node.attr, node, self.uses.needed)

    def _used(self, owner: str, name: str, node: ast.expr, kept: set[Use]) -> str | None:
        if owner.startswith("call:"):
            return None
        plain = owner.removeprefix("type:")
        kept.add(Use(plain, name, f"{self.file}:{node.lineno}"))
        if owner == MODULE:
            return f"type:{name}"
        if owner.startswith("type:"):
            return None  # a member of an enumeration, or a method that is called through its class
        return CLASS_OF_RESULT.get((plain, name)) if name in ("type", "dtype") else f"call:{plain}.{name}"

    def _of_call(self, node: ast.Call) -> str | None:
        asked = isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr") and len(node.args) >= 2
        if asked and isinstance(node.args[1], ast.Constant):
            owner = self._what(node.args[0])
            if owner is None or owner == "Library":
                return None
            found = self._used(owner, str(node.args[1].value), node, self.uses.optional)
            return found if ast.unparse(node.func) == "getattr" else None
        what = self._what(node.func)
        if what is not None and what.startswith("type:"):
            return what.removeprefix("type:")
        if what is not None and what.startswith("call:"):
            owner, _, name = what.removeprefix("call:").partition(".")
            return CLASS_OF_RESULT.get((owner, name))
        return None


LISTING = """
import importlib, inspect, json, os, sys
sys.setdlopenflags(os.RTLD_LAZY)
sys.path[:0] = [sys.argv[2]] if sys.argv[2] else []
trt = importlib.import_module(sys.argv[1])
known = {"module": dir(trt)}
known.update({name: dir(entry) for name, entry in vars(trt).items() if inspect.isclass(entry)})
print(json.dumps({"version": trt.__version__, "known": known}))
"""
"""Run with a module's name and a folder: prints every name of the module and of its classes as JSON."""


def missing(uses: set[Use], known: dict[str, list[str]]) -> list[Use]:
    """The uses that a TensorRT does not have; those of a class that is missing as a whole are the class's own."""
    return sorted(use for use in uses if use.owner in known and use.name not in known[use.owner])
