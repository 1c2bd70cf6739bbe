from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kestrel.inference.errors import ModelUnsupportedError
from kestrel.inference.models.definition import CellSizeRange, InputSpec, ModelClass, ModelDefinition
from kestrel.inference.models.description import (
    describe_definition,
    describe_package,
    normalisation_text,
    told_of_refused,
)
from kestrel.inference.models.fit_rules import (
    Unit,
    band_meaning,
    cell_size_problem,
    expected_values,
    find_band,
    ground_side,
    range_in_metres,
)
from kestrel.inference.models.package import open_package
from kestrel.tests.fixtures.esri_packages import arcgis_emd, write_package
from kestrel.tests.fixtures.packages import emd, good_entries, write_zip

IMAGENET = InputSpec((0, 1, 2), (1 / 255,), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def described(path: Path, **members: Any) -> dict[str, Any]:
    return describe_package(open_package(str(write_package(path, arcgis_emd("MaskRCNN", **members)))))


def test_a_package_of_arcgis_learn_is_described_whole(tmp_path: Path) -> None:
    found = described(tmp_path / "roofs.dlpk", License="CC0", ImageryType="RGB")
    assert {key: found[key] for key in ("family", "backbone", "framework", "model_type", "license", "geometry")} == {
        "family": "MaskRCNN", "backbone": "resnet18", "framework": "arcgis.learn.models._inferencing",
        "model_type": "InstanceDetection", "license": "CC0", "geometry": "polygon",
    }  # fmt: skip
    assert found["classes"][0] == {"value": 1, "name": "Class 1", "color": [0, 20, 30]}
    assert [band["name"] for band in found["bands"]] == ["Red", "Green", "Blue"]
    assert found["cell_size"] == {"min": 0.1, "max": 0.2, "wkid": 3857}
    assert found["tile"] == {"size": 256, "is_variable": True, "padding": 64}
    assert found["metrics"]["average_precision_score"] == {"Class 1": 0.5, "Class 2": 0.5}
    assert found["code"]["is_run"] is False
    assert found["code"]["never_run"] == ["ArcGISInstanceDetector.py"]
    assert "ModelCharacteristics/loss_graph.png" in found["thumbnails"]


def test_a_description_is_plain_json(tmp_path: Path) -> None:
    found = described(tmp_path / "roofs.dlpk", n_bands=4)
    assert json.loads(json.dumps(found)) == found


def test_beside_a_loose_definition_only_its_own_files_are_told(tmp_path: Path) -> None:
    path = write_package(tmp_path / "folder", arcgis_emd("MaskRCNN"))
    (path.parent / "my_diary.docx").write_bytes(b"x")
    names = [file["name"] for file in describe_package(open_package(str(path)))["files"]]
    assert "model.pth" in names
    assert "my_diary.docx" not in names


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (("LICENSE.txt", "Do what you like.\n"), "Do what you like."),
        (("esriinfo/iteminfo.xml", "<x><licenseinfo>&lt;p&gt;Only &lt;b&gt;here&lt;/b&gt;&lt;/p&gt;</licenseinfo></x>"),
         "Only here"),
        (("other.txt", "no licence"), ""),
    ],
)  # fmt: skip
def test_a_licence_is_found_in_its_file_or_in_the_items_description(
    tmp_path: Path, entry: tuple[str, str], expected: str
) -> None:
    path = write_zip(tmp_path / "x.dlpk", [*good_entries(), entry])
    assert describe_package(open_package(str(path)))["license"] == expected


def test_what_can_be_told_of_a_refused_model_is_told(tmp_path: Path) -> None:
    data = emd(Framework="Keras", ModelName="Clouds", ModelConfiguration=None)
    path = write_zip(tmp_path / "x.dlpk", [("x/x.emd", json.dumps(data))])
    expected = "name Clouds, framework Keras, type ObjectDetection, 2 classes"
    assert told_of_refused(str(path)) == expected
    assert told_of_refused(json.dumps(data)) == expected
    with zipfile.ZipFile(path) as archive:
        archive.extract("x/x.emd", tmp_path)
    assert told_of_refused(str(tmp_path / "x")) == expected


def test_what_is_told_of_a_refused_package_is_of_the_definition_that_was_refused(tmp_path: Path) -> None:
    other, refused = emd(ModelName="A sample"), emd(Framework="Keras", ModelName="Clouds", ModelConfiguration=None)
    entries = [("samples/old.emd", json.dumps(other)), ("x.emd", json.dumps(refused))]
    path = write_zip(tmp_path / "x.dlpk", entries)
    with pytest.raises(ModelUnsupportedError):
        open_package(str(path))
    assert told_of_refused(str(path)).startswith("name Clouds, framework Keras")


@pytest.mark.parametrize("reference", ["/nowhere", "", "{", "no file"])
def test_where_nothing_can_be_told_nothing_is(reference: str) -> None:
    assert told_of_refused(reference) == ""


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (InputSpec(), "as they are"),
        (InputSpec(scale=(1 / 255,)), "divided by 255"),
        (InputSpec(scale=(0.5,), mean=(1.0,)), "times 0.5, less the mean 1"),
        (IMAGENET, "divided by 255, less the mean 0.485, 0.456, 0.406, divided by the deviation 0.229, 0.224, 0.225"),
    ],
)
def test_the_normalisation_is_said_in_words(spec: InputSpec, text: str) -> None:
    assert normalisation_text(spec) == text


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (InputSpec(), None),
        (InputSpec(data_range=(0, 1000)), (0, 1000)),
        (IMAGENET, (0, 255)),
        (InputSpec((0,), (1 / 2000,), (0.0,), (1.0,)), (0, 2000)),
        (InputSpec((0,), (1 / 2000,), (0.5,), (0.125,)), (0, 2000)),
    ],
)
def test_the_pixel_values_that_a_model_wants_follow_from_its_normalisation(
    spec: InputSpec, expected: tuple[float, float] | None
) -> None:
    assert expected_values(spec) == expected


def test_a_damaged_default_does_not_keep_the_rest_from_being_told() -> None:
    model = ModelDefinition("m", "onnx", "w", (ModelClass(1, "a", (0, 0, 0)),), arguments={"threshold": "odd"})
    assert describe_definition(model)["arguments"] == []


# -- The rules of fitting, without a library ---------------------------------------------------------------------------


def test_degrees_are_taken_at_the_latitude() -> None:
    low, high = range_in_metres(CellSizeRange(1e-5, 2e-5, 4326), Unit(is_degree=True), 60)
    assert (low, high) == (pytest.approx(0.786, abs=0.001), pytest.approx(1.572, abs=0.001))


def test_feet_and_web_mercator_become_metres_on_the_ground() -> None:
    assert range_in_metres(CellSizeRange(1, 1, 2263), Unit(0.3048), 40)[0] == pytest.approx(0.3048)
    assert range_in_metres(CellSizeRange(1, 1, 3857), Unit(), 60)[0] == pytest.approx(0.5)


def test_a_side_on_the_ground_is_measured_on_the_globe() -> None:
    assert ground_side([10, 10.00002, 10], [60, 60, 60.00001]) == pytest.approx(1.1151, abs=0.0005)
    assert ground_side([10, float("nan"), 10], [60, 60, 60]) is None


@pytest.mark.parametrize(("actual", "fitting"), [(0.11, None), (0.09, None), (0.6, 0.2), (0.05, 2.4)])
def test_the_cell_size_that_fits_is_in_the_rasters_own_units(actual: float, fitting: float | None) -> None:
    problem = cell_size_problem(0.1, 0.144, actual, 1.0)
    assert (problem.fitting if problem else None) == (None if fitting is None else pytest.approx(fitting, rel=0.01))


@pytest.mark.parametrize(
    ("name", "names", "place"),
    [
        ("Red", ("red", "green"), 0),
        ("NearInfrared", ("red", "NIR"), 1),
        ("NIR", ("nir", "Near-Infrared"), 0),
        ("Near Infrared", ("NIR", "nir1"), None),  # which of the two?
        ("Band 4", ("Band 1",), None),
    ],
)
def test_a_band_is_found_by_name_or_by_what_it_means(name: str, names: tuple[str, ...], place: int | None) -> None:
    assert find_band(name, names) == place


def test_names_that_say_nothing_mean_nothing() -> None:
    assert [band_meaning(name) for name in ("Band 1", "gray", "", "b04")] == [""] * 4


def test_a_description_full_of_beginnings_is_read_at_once(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.dlpk", [*good_entries(), ("esriinfo/iteminfo.xml", "<useLimit>" * 26_000)])
    assert "" == describe_package(open_package(str(path)))["license"]
