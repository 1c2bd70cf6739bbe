"""Every family on every backbone from a package's file to objects; containers, eras and layouts give the very same."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kestrel.inference.detections import Detections
from kestrel.inference.detectors import load_detector
from kestrel.inference.detectors.protocol import DetectorSettings
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.package import open_package
from kestrel.tests.fixtures.esri_models import CHIP, MODELS, SMALLEST, FamilyModel
from kestrel.tests.fixtures.esri_packages import CONTAINERS, ERAS, LAYOUTS, write_package


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone after the test: some weights take a quarter of a gigabyte."""
    yield tmp_path
    shutil.rmtree(tmp_path)
    gc.collect()


def objects_of(path: Path, unpacked: Path) -> Detections:
    package = open_package(str(path))
    arguments = {**resolve_arguments(package.definition, {}).values, "threshold": 0.01}
    unpacked.mkdir()
    detector = load_detector(package, arguments, DetectorSettings("cpu", 2), unpacked)
    pixels = np.random.default_rng(3).integers(0, 256, (1, 3, CHIP, CHIP), dtype=np.uint8)
    (found,) = detector.predict(pixels)
    return found


def run(model: FamilyModel, path: Path) -> None:
    emd, state = model.make()
    found = objects_of(write_package(path / "model.dlpk", emd, state), path / "unpacked")
    assert len(found) > 0
    assert np.isfinite(found.boxes).all()
    assert (found.shapes is not None) == (model.family == "MaskRCNN")


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_package_of_each_family_on_each_backbone_gives_objects(model: FamilyModel, folder: Path) -> None:
    run(model, folder)


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in SMALLEST if name != "YOLOv3"])
def test_containers_eras_and_layouts_of_a_family_give_the_same_objects(family: str, folder: Path) -> None:
    emd, state = SMALLEST[family].make()
    emd = {**emd, "ArcGISLearnVersion": "2.4.4"}
    ways = [{"container": container} for container in CONTAINERS]
    ways += [{"era": era} for era in ERAS] + [{"layout": layout} for layout in LAYOUTS]
    results = []
    for number, way in enumerate(ways):
        path = write_package(folder / f"{number}.dlpk", emd, state, **way)
        results.append(objects_of(path, folder / f"unpacked-{number}"))
        path.unlink()
    loose = write_package(folder / "loose", emd, state)
    results += [objects_of(loose, folder / "a"), objects_of(loose.parent, folder / "b")]
    expected = results[0]
    assert len(expected) > 0
    for found in results[1:]:
        assert np.array_equal(expected.boxes, found.boxes)
        assert np.array_equal(expected.scores, found.scores)
        assert np.array_equal(expected.labels, found.labels)
