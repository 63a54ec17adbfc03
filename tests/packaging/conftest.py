"""Real exports of tiny generators, with their lookup graphs, and model repositories of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spade_deploy.artifact import INSTANCE, LABEL, Artifact, Source, Z, rewrite_manifest
from spade_deploy.export.pipeline import ExportRequest, export_artifact
from spade_deploy.packaging.repository import write_repository
from spade_deploy.packaging.request import Device, PackageRequest
from spade_deploy.spec import GraphKind, LabelSpec, Precision
from tests.support.triton import LocalTriton


def blocks(count: int, num_ids: int, size: tuple[int, int] = (64, 64), seed: int = 0) -> np.ndarray:
    """Label maps of large regions, N x H x W: few patterns, as real maps have."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, num_ids, (count, size[0] // 16, size[1] // 16))
    return coarse.repeat(16, axis=1).repeat(16, axis=2)


def exported(folder: Path, generator: Any) -> Artifact:
    spec = generator.spec
    golden = {LABEL: blocks(2, spec.labels.num_ids).astype(spec.labels.id_type)}
    if spec.labels.has_edges:
        golden[INSTANCE] = blocks(2, 9, seed=1).astype(np.int32)
    if spec.z_dim is not None:
        golden[Z] = np.random.default_rng(2).standard_normal((2, spec.z_dim), np.float32)
    source = Source("tiny-001", 3, "train", "0" * 64)
    export_artifact(generator, folder, ExportRequest(golden, source, precisions=[Precision.FP32]))
    return Artifact.open(folder)


def with_share(artifact: Artifact, share: float | None) -> Artifact:
    """The same artifact, whose lookup graph wins below this share of unique patterns."""
    graphs = tuple(
        replace(graph, break_even_share=share) if graph.kind is GraphKind.LOOKUP else graph
        for graph in artifact.manifest.graphs
    )
    rewrite_manifest(artifact.path, replace(artifact.manifest, graphs=graphs))
    return Artifact.open(artifact.path)


@pytest.fixture(scope="session")
def edges(tmp_path_factory: pytest.TempPathFactory, make_generator: Callable[..., Any]) -> Artifact:
    """7 labels, unknown pixels, edges, any size; the lookup graph wins below half of the patterns."""
    folder = tmp_path_factory.mktemp("edges") / "tiny-001" / "artifact"
    return with_share(exported(folder, make_generator(base_channels=2, hidden_channels=4)), 0.5)


@pytest.fixture(scope="session")
def styled(tmp_path_factory: pytest.TempPathFactory, make_generator: Callable[..., Any]) -> Artifact:
    """300 labels, so int32 ids, a style vector, one size; nobody measured the lookup graph."""
    generator = make_generator(base_channels=2, hidden_channels=4, labels=LabelSpec(300), z_dim=4)
    return exported(tmp_path_factory.mktemp("styled") / "styled", generator)


def packaged(artifact: Artifact, folder: Path, **asked: Any) -> LocalTriton:
    write_repository(artifact, PackageRequest(triton=folder, **{"device": Device.CPU, "threads": 1, **asked}))
    return LocalTriton(folder)


@pytest.fixture(scope="session")
def edges_triton(tmp_path_factory: pytest.TempPathFactory, edges: Artifact) -> LocalTriton:
    return packaged(edges, tmp_path_factory.mktemp("edges_triton") / "models")


@pytest.fixture(scope="session")
def styled_triton(tmp_path_factory: pytest.TempPathFactory, styled: Artifact) -> LocalTriton:
    return packaged(styled, tmp_path_factory.mktemp("styled_triton") / "models")
