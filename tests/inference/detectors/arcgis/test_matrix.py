"""Every family on every backbone from a package's file to objects; containers, eras and layouts hold the very same."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kestrel.inference.detections import Detections
from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.protocol import DetectorSettings
from kestrel.inference.detectors.weights import read_state
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.definition import ModelDefinition
from kestrel.inference.models.package import open_package
from kestrel.tests.fixtures.esri_models import CHIP, MODELS, SMALLEST, FamilyModel
from kestrel.tests.fixtures.esri_packages import CONTAINERS, ERAS, LAYOUTS, write_package

WAYS: Mapping[str, Mapping[str, Any]] = {
    **{f"container {name}": {"container": name} for name in CONTAINERS},
    **{f"era {name}": {"era": name} for name in ERAS},
    **{f"layout {name}": {"layout": name} for name in LAYOUTS},
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone after the test: some weights take a quarter of a gigabyte."""
    yield tmp_path
    shutil.rmtree(tmp_path)
    gc.collect()


def objects_of(path: Path, unpacked: Path, threshold: float) -> Detections:
    package = open_package(str(path))
    arguments = {**resolve_arguments(package.definition, {}).values, "threshold": threshold}
    unpacked.mkdir()
    detector = load_detector(package, arguments, DetectorSettings("cpu", 2), unpacked)
    pixels = np.random.default_rng(3).integers(0, 256, (1, 3, CHIP, CHIP), dtype=np.uint8)
    (found,) = detector.predict(pixels)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_package_of_each_family_on_each_backbone_gives_objects(model: FamilyModel, folder: Path) -> None:
    emd, state = model.make()
    is_mask = model.family == "MaskRCNN"
    # Random networks find much: a few outlines are enough.
    found = objects_of(write_package(folder / "model.dlpk", emd, state), folder / "unpacked", 0.4 if is_mask else 0.01)
    assert len(found) > 0
    assert np.isfinite(found.boxes).all()
    assert (found.shapes is not None) == is_mask


def content_of(path: Path, unpacked: Path) -> tuple[ModelDefinition, Mapping[str, torch.Tensor]]:
    """Give all that decides what a package finds: its definition and its weights."""
    package = open_package(str(path))
    member = package.weights_member()
    definition = replace(package.definition, facts={}, notes=())
    return definition, read_state(package.extract(member, unpacked), member)


@pytest.mark.slow
@pytest.mark.parametrize("family", SMALLEST)
def test_containers_eras_and_layouts_of_a_family_hold_the_same_model(family: str, folder: Path) -> None:
    emd, state = SMALLEST[family].make()
    packages = {name: (folder / f"{name}.dlpk", way) for name, way in WAYS.items()}
    packages["loose"] = (folder / "loose", {})
    expected: ModelDefinition | None = None
    for name, (path, way) in packages.items():
        package = write_package(path, emd, state, **way)
        definition, weights = content_of(package, folder / "weights")
        expected = expected or definition
        assert definition == expected, name
        assert set(weights) == set(state), name
        assert all(torch.equal(weights[key], state[key]) for key in state), name
        (folder / "weights").unlink()
        if name == "loose":
            assert definition == replace(open_package(str(path)).definition, facts={}, notes=())
        else:
            path.unlink()
