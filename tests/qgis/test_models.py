"""kestrel:describemodel and kestrel:packagemodel, as scripts and dialogs run them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from osgeo import gdal, ogr, osr
from qgis.core import QgsApplication, QgsProcessingException, QgsRasterLayer

from kestrel.inference.models.package import open_package
from kestrel.processing_provider.code_consent import Consent, allow, revoke, sha256_of
from kestrel.processing_provider.description_html import page
from kestrel.processing_provider.fit_check import FitReport, fit_of, fit_warnings, look_at, value_range
from kestrel.tests.qgis.examples import (
    Listener,
    context,
    mask_rcnn_emd,
    write_mask_rcnn,
    write_model,
    write_program,
    write_raster,
)


def run(name: str, parameters: dict[str, Any], feedback: Listener | None = None) -> dict[str, Any]:
    made = QgsApplication.processingRegistry().createAlgorithmById(f"kestrel:{name}")
    results, is_good = made.run(parameters, context(), feedback or Listener(), catchExceptions=False)
    assert is_good
    return results


def test_a_model_is_described_in_text_json_and_html(tmp_path: Path) -> None:
    feedback = Listener()
    files = {"OUTPUT_HTML": str(tmp_path / "roofs.html"), "OUTPUT_JSON": str(tmp_path / "roofs.json")}
    results = run("describemodel", {"MODEL": write_mask_rcnn(tmp_path / "roofs.dlpk"), **files}, feedback)
    assert (results["NAME"], results["FAMILY"], results["CLASS_COUNT"]) == ("roofs", "MaskRCNN", 3)
    assert (results["NEEDS_CONSENT"], results["CODE_SHA256"]) == (0, "")
    described = json.loads((tmp_path / "roofs.json").read_text("utf-8"))
    assert described == json.loads(results["DESCRIPTION"])
    assert described["backbone"] == "resnet50"
    assert described["cell_size"] == {"min": 0.1, "max": 0.15, "wkid": 26917}
    assert described["code"]["never_run"] == ["ArcGISInstanceDetector.py"]
    assert described["cards"] == ["README.md"]
    assert described["metrics"]["average_precision_score"]["Pool"] == 0.9
    text = (tmp_path / "roofs.html").read_text("utf-8")
    assert "#d64541" in text and "MaskRCNN" in text
    said = [line for level, line in feedback.said if level == "info"]
    assert "Classes: Roof (1), Solar panel (2), Pool (3)" in said
    assert "Cell size: 0.1 \u2013 0.15 m" in said


def test_files_are_written_only_when_asked_for(tmp_path: Path) -> None:
    results = run("describemodel", {"MODEL": write_model(tmp_path)})
    assert {"OUTPUT_HTML", "OUTPUT_JSON"} & set(results) == set()


def test_a_program_is_described_with_its_hash_and_whether_it_may_run(tmp_path: Path) -> None:
    model = write_program(tmp_path / "finder.dlpk")
    sha256 = sha256_of(open_package(model))
    results = run("describemodel", {"MODEL": model})
    assert (results["NEEDS_CONSENT"], results["CODE_SHA256"]) == (1, sha256)
    allow(sha256, "x")
    try:
        assert run("describemodel", {"MODEL": model})["NEEDS_CONSENT"] == 0
    finally:
        revoke(sha256)


def test_with_a_raster_it_tells_what_does_not_suit(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "coarse.tif", values=(0, 255))
    feedback = Listener()
    results = run("describemodel", {"MODEL": write_mask_rcnn(tmp_path / "m.dlpk"), "INPUT": raster}, feedback)
    fit = json.loads(results["DESCRIPTION"])["fit"]
    assert fit["cell_size"] == pytest.approx(0.1225, rel=0.01)
    assert any("trained on 0.1 to 0.15 m" in text for level, text in feedback.said if level == "warning")


def test_a_model_that_is_refused_is_told_with_its_name_and_the_reason(tmp_path: Path) -> None:
    model = write_model(
        tmp_path, Framework="arcgis.learn.models._inferencing", ModelConfiguration="_unet", ModelName="UnetClassifier",
        ModelType="ImageClassification", ArcGISLearnVersion="2.1.0",
    )  # fmt: skip
    with pytest.raises(QgsProcessingException) as caught:
        run("describemodel", {"MODEL": model})
    text = str(caught.value)
    assert "pixel classifier" in text
    assert "name UnetClassifier" in text and "ArcGIS API version 2.1.0" in text
    assert text.endswith("[model-unsupported]")


EVIL = "<img src=file:///etc/hostname><script>x</script>\u202e"


def test_no_text_of_a_package_reaches_the_page_as_html(tmp_path: Path) -> None:
    changes = dict.fromkeys(
        ("ModelVersion", "Description", "License", "ImageryType", "ArcGISLearnVersion", "Preprocessing"), EVIL
    )
    model = write_mask_rcnn(
        tmp_path / "evil.dlpk", **changes, Classes=[{"Value": 1, "Name": EVIL}], Bands=[EVIL, EVIL, EVIL],
        accuracy=EVIL, per_class_metrics=json.dumps({EVIL: EVIL}),
    )  # fmt: skip
    with zipfile.ZipFile(model, "a") as archive:
        archive.writestr("README evil<b>.md".replace("<", "(").replace(">", ")"), EVIL)
    results = run("describemodel", {"MODEL": model, "OUTPUT_HTML": str(tmp_path / "x.html")})
    text = (tmp_path / "x.html").read_text("utf-8")
    assert ("<img" in text, "<script" in text, "\u202e" in text) == (False, False, False)
    assert EVIL in json.loads(results["DESCRIPTION"])["license"]


def test_what_waits_for_consent_is_told_on_the_page(tmp_path: Path) -> None:
    results = run("describemodel", {"MODEL": write_program(tmp_path / "finder.dlpk")})
    text = page(json.loads(results["DESCRIPTION"]), Consent.MISSING)
    assert "waits for your consent" in text


def test_a_model_is_saved_as_a_definition_that_is_a_model_beside_its_weights(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    mine = tmp_path / "mine" / "mine.json"
    model = write_model(tmp_path, MinCellSize=None)
    results = run("describemodel", {"MODEL": model, "OUTPUT_DEFINITION": str(mine)})
    assert results["OUTPUT_DEFINITION"] == str(mine)
    content = json.loads(mine.read_text("utf-8"))
    assert content == json.loads(results["DESCRIPTION"])["definition"]
    (tmp_path / "mine" / content["detector"]["weights"]).write_bytes(b"weights")
    found, before = open_package(str(mine)).definition, open_package(model).definition
    assert (found.classes, found.input, found.tile) == (before.classes, before.input, before.tile)
    described = run("describemodel", {"MODEL": str(mine)})
    assert json.loads(described["DESCRIPTION"])["definition"] == content


def test_the_page_tells_stretch_resolution_and_the_definition_itself(tmp_path: Path) -> None:
    members = {"cell_size": {"read_at": 0.3}, "input": {"stretch": {"from": "statistics"}}, "name": EVIL}
    (tmp_path / "palms.onnx").write_bytes(b"weights")
    (tmp_path / "palms.json").write_text(json.dumps({**OWN, **members}))
    feedback, page_file = Listener(), tmp_path / "x.html"
    run("describemodel", {"MODEL": str(tmp_path / "palms.json"), "OUTPUT_HTML": str(page_file)}, feedback)
    said = [line for level, line in feedback.said if level == "info"]
    assert "Cell size: 0.3 m, read at 0.3 m" in said
    assert any("stretched to 0 to 255 (mean less and plus 2 standard deviations)" in line for line in said)
    text = page_file.read_text("utf-8")
    assert "<pre>{" in text and "&quot;deviations&quot;: 2.0" in text
    assert ("<img" in text, "<script" in text) == (False, False)


# -- Does the raster suit? ---------------------------------------------------------------------------------------------


def fit(tmp_path: Path, model: dict[str, Any] | None = None, **raster: Any) -> list[str]:
    package = write_mask_rcnn(tmp_path / "m.dlpk", **(model or {}))
    options = {"transform": (5e5, 0.12, 0, 56e5, 0, -0.12), **raster}
    return fit_of(open_package(package).definition, looked_at(tmp_path, **options)).all_texts()


def looked_at(folder: Path, **options: Any) -> Any:
    return look_at(QgsRasterLayer(write_raster(folder / "r.tif", **options), "photo", "gdal"))


def test_a_raster_of_the_models_kind_gives_no_warning(tmp_path: Path) -> None:
    assert fit(tmp_path, values=(3, 250)) == []


def test_values_of_16_bits_are_told_with_the_remedy(tmp_path: Path) -> None:
    (text,) = fit(tmp_path, kind=gdal.GDT_UInt16, values=(200, 3000))
    assert "The raster's values go from 200 to 3000" in text
    assert "-ot Byte -scale" in text


def test_16_bits_with_the_values_of_8_are_nothing_to_tell(tmp_path: Path) -> None:
    assert fit(tmp_path, kind=gdal.GDT_UInt16, values=(0, 255)) == []


OWN = {
    "kestrel_definition": 1, "name": "Palms", "classes": [{"value": 1, "name": "Palm"}],
    "detector": {"kind": "onnx", "weights": "palms.onnx", "head": "yolov8"}, "input": {"scale": 1 / 255},
}  # fmt: skip


def own_report(tmp_path: Path, raster: dict[str, Any], **members: Any) -> FitReport:
    package = open_package(json.dumps({**OWN, **members}))
    options = {"transform": (5e5, 0.12, 0, 56e5, 0, -0.12), **raster}
    return fit_of(package.definition, looked_at(tmp_path, **options))


def test_values_that_the_run_will_stretch_are_no_warning(tmp_path: Path) -> None:
    sixteen = {"kind": gdal.GDT_UInt16, "values": (200, 3000)}
    report = own_report(tmp_path, sixteen)
    assert report.all_texts() == []
    assert "will be stretched to the model's 0 to 255 (2nd to 98th percentile)" in report.remarks[0]
    assert own_report(tmp_path, {"values": (0, 255)}).remarks == ()


def test_values_that_the_user_wants_as_they_are_are_warned_of(tmp_path: Path) -> None:
    definition = open_package(json.dumps(OWN)).definition
    raster = looked_at(tmp_path, kind=gdal.GDT_UInt16, values=(200, 3000))
    (text,) = fit_warnings(definition, raster, "none")
    assert "Set the model argument stretch to percentiles" in text
    assert fit_warnings(definition, raster) == ()


def test_a_raster_that_is_read_at_the_models_resolution_is_no_warning(tmp_path: Path) -> None:
    cell_size = {"min": 0.28, "max": 0.32, "read_at": 0.3}
    report = own_report(tmp_path, {"values": (0, 255)}, cell_size=cell_size)
    assert report.all_texts() == []
    assert "the raster is read with a cell size of 0.29988" in report.remarks[0]  # 0.3 m on the ground, in UTM


def test_a_cell_size_that_overrules_the_models_resolution_is_compared_with_the_training(tmp_path: Path) -> None:
    package = open_package(json.dumps({**OWN, "cell_size": {"min": 0.28, "max": 0.32, "read_at": 0.3}}))
    raster = looked_at(tmp_path, values=(0, 255), transform=(5e5, 0.12, 0, 56e5, 0, -0.12))
    report = fit_of(package.definition, raster, 0.12)
    assert report.cell_size is not None
    assert report.remarks == ()


def test_bands_without_names_are_taken_for_colours_and_that_is_told(tmp_path: Path) -> None:
    spec = {"bands": ["red", "green", "blue"], "scale": 1 / 255}
    report = own_report(tmp_path, {"values": (0, 255), "names": ("b1", "b2", "b3")}, input=spec)
    assert report.is_possible
    assert "have no names" in report.texts[0]


def test_fractions_are_told(tmp_path: Path) -> None:
    (text,) = fit(tmp_path, kind=gdal.GDT_Float32, values=(0, 1))
    assert "go from 0 to 1" in text


@pytest.mark.parametrize(
    ("names", "n_warnings"),
    [(("Red", "Green", "Blue"), 0), (("b1", "b2", "b3"), 0), (("NIR", "Red", "Green"), 1), ((), 0)],
)
def test_bands_are_compared_by_their_names(tmp_path: Path, names: tuple[str, ...], n_warnings: int) -> None:
    texts = fit(tmp_path, values=(0, 255), names=names)
    assert len(texts) == n_warnings
    assert n_warnings == 0 or "band 1 is 'NIR' and should be 'Red'" in texts[0]


@pytest.mark.parametrize(("wanted", "found"), [("NearInfrared", "NIR"), ("nir", "Near Infrared"), ("Red", "red")])
def test_a_band_is_found_under_another_name_of_the_same_meaning(tmp_path: Path, wanted: str, found: str) -> None:
    stats = {f"band_{k}_values": [v] * 4 for k, v in (("min", 0), ("max", 255))}
    stats |= {f"scaled_{k}_values": [0.5] * 4 for k in ("mean", "std")}
    model = {"ExtractBands": [wanted, "Green"], "Bands": [wanted, "Green"], "NormalizationStats": stats}
    assert fit(tmp_path, model, n_bands=4, values=(0, 255), names=("Blue", "Green", found, "x")) == []


def test_colours_that_gdal_made_up_are_no_reason_to_warn(tmp_path: Path) -> None:
    model = {"Bands": ["NearInfrared", "Red", "Green"], "ImageryType": "naip"}
    assert fit(tmp_path, model, values=(0, 255)) == []
    (text,) = fit(tmp_path, {"Bands": ["Blue", "Green", "Red"], "ImageryType": "x"}, values=(0, 255))
    assert "band 1 is 'Red' and should be 'Blue', band 3 is 'Blue' and should be 'Red'" in text


def test_a_band_that_is_missing_is_the_reason_why_nothing_runs(tmp_path: Path) -> None:
    package = open_package(write_mask_rcnn(tmp_path / "m.dlpk"))
    report = fit_of(package.definition, looked_at(tmp_path, n_bands=1))
    assert (report.is_possible, "reads band 2" in report.texts[0]) == (False, True)


def test_a_look_at_the_values_leaves_no_file_behind(tmp_path: Path) -> None:
    package = open_package(write_mask_rcnn(tmp_path / "m.dlpk"))
    raster = looked_at(tmp_path, values=(10, 200))
    for path in tmp_path.glob("*.aux.xml"):
        path.unlink()  # the layer's own
    assert value_range(raster, package.definition) == (10, 200)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.dlpk", "r.tif"]


@pytest.fixture(params=[True, False], ids=["exceptions", "no exceptions"])
def _gdal_raises(request: pytest.FixtureRequest) -> Iterator[None]:
    """GDAL tells of errors by exceptions or not: whatever another plugin has chosen."""
    modules = (gdal, ogr, osr)
    before = [module for module in modules if module.GetUseExceptions()]

    def switch(raising: list[Any]) -> None:
        gdal.ErrorReset()  # an old error would be raised by the next call, whatever it is
        for module in reversed(modules):  # the last one that was switched on is the first that can be switched off
            if module.GetUseExceptions():
                module.DontUseExceptions()
        for module in raising:
            module.UseExceptions()

    switch([*modules] if request.param else [])
    yield
    switch(before)


@pytest.mark.usefixtures("_gdal_raises")
def test_a_raster_whose_pixels_cannot_be_read_has_no_range_of_values(tmp_path: Path) -> None:
    package = open_package(write_model(tmp_path))
    raster = looked_at(tmp_path, values=(10, 200))
    path = Path(raster.connection)
    path.write_bytes(path.read_bytes()[:2000])
    assert gdal.Open(str(path)) is not None
    assert value_range(raster, package.definition) is None


# -- Packing -----------------------------------------------------------------------------------------------------------


def test_a_package_is_written_from_weights_and_definition(tmp_path: Path) -> None:
    weights = tmp_path / "palms.onnx"
    weights.write_bytes(b"weights")
    definition = {
        "kestrel_definition": 1, "name": "Palms", "classes": [{"value": 1, "name": "Palm"}],
        "detector": {"kind": "onnx", "weights": "anything.onnx", "head": "yolov8"},
    }  # fmt: skip
    (tmp_path / "licence.txt").write_text("Do what you like.\nReally.\n")
    feedback = Listener()
    results = run(
        "packagemodel",
        {
            "WEIGHTS": str(weights), "DEFINITION": definition, "LICENSE": str(tmp_path / "licence.txt"),
            "OUTPUT": str(tmp_path / "palms.dlpk"),
        },
        feedback,
    )  # fmt: skip
    package = open_package(results["OUTPUT"])
    assert (package.definition.name, package.definition.weights) == ("Palms", "palms.onnx")
    assert (results["FILE_COUNT"], results["SHA256"]) == (4, package.sha256())
    assert package.read_text("LICENSE.txt") == "Do what you like.\nReally.\n"
    described = run("describemodel", {"MODEL": results["OUTPUT"]})
    assert json.loads(described["DESCRIPTION"])["license"] == "Do what you like.\nReally."


def test_a_definition_beside_its_weights_is_packed_without_naming_them(tmp_path: Path) -> None:
    (tmp_path / "palms.onnx").write_bytes(b"weights")
    (tmp_path / "palms.json").write_text(json.dumps(OWN))
    results = run("packagemodel", {"DEFINITION": str(tmp_path / "palms.json"), "OUTPUT": str(tmp_path / "x.dlpk")})
    found = open_package(results["OUTPUT"]).definition
    assert (found.name, found.input.scale) == ("Palms", (1 / 255,))


def test_further_files_go_in(tmp_path: Path) -> None:
    for name in ("palms.onnx", "palms.data"):
        (tmp_path / name).write_bytes(b"numbers")
    results = run(
        "packagemodel",
        {
            "WEIGHTS": str(tmp_path / "palms.onnx"), "DEFINITION": write_model(tmp_path), "NAME": "Palms of 2024",
            "EXTRA_FILES": [str(tmp_path / "palms.data")], "OUTPUT": str(tmp_path / "out.dlpk"),
        },
    )  # fmt: skip
    names = open_package(results["OUTPUT"]).members.names()
    assert sorted(names) == ["Palms of 2024.emd", "esriinfo/iteminfo.xml", "palms.data", "palms.onnx"]


def test_what_cannot_be_packed_ends_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "roofs.pth").write_bytes(b"no checkpoint")
    parameters = {
        "WEIGHTS": str(tmp_path / "roofs.pth"),
        "DEFINITION": json.dumps(mask_rcnn_emd()),
        "OUTPUT": str(tmp_path / "out.dlpk"),
    }
    with pytest.raises(QgsProcessingException, match=r"roofs\.pth.*\[model-package\]"):
        run("packagemodel", parameters)
    assert not (tmp_path / "out.dlpk").exists()


@pytest.mark.parametrize("name", ["describemodel", "packagemodel"])
def test_the_help_tells_every_parameter_and_output(name: str) -> None:
    made = QgsApplication.processingRegistry().createAlgorithmById(f"kestrel:{name}")
    text = made.shortHelpString()
    labels = [item.description() for item in made.parameterDefinitions()]
    assert [label for label in labels if f"<h3>{label}</h3>" not in text] == []
