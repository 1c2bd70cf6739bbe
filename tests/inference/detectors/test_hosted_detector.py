from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.detections import Detections
from kestrel.inference.detectors import hosted_detector, load_detector
from kestrel.inference.detectors.features import FeatureReader, fields_from_esri
from kestrel.inference.detectors.program_detector import bare_output
from kestrel.inference.detectors.protocol import DetectorSettings
from kestrel.inference.errors import (
    BackendMissingError,
    DeviceMemoryError,
    ModelError,
    ModelIncompatibleError,
    ModelUnsupportedError,
    ProtocolError,
    TileError,
    UntrustedCodeError,
)
from kestrel.inference.host import frames, shims
from kestrel.inference.host.frames import Frame, read_frame, write_frame
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.definition import InputSpec, TileSpec
from kestrel.inference.models.package import ModelPackage, open_package
from kestrel.inference.models.program import program_sha256
from kestrel.inference.object_file import CLASS_TEXT
from kestrel.tests.fixtures.packages import write_zip
from kestrel.tests.fixtures.raster_functions import CLASSES, answering, folder_package, write_finder
from kestrel.tests.fixtures.rasters import write_raster
from kestrel.tests.fixtures.runs import run

pytestmark = pytest.mark.slow

BLOCK = 2 * (64 - 2 * 8) + 2 * 8
"""Side of the block that the function Finder asks for: 2 x 2 chips of 64 pixels with a padding of 8."""

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Load a package with consent to its exact content; all processes end with the test."""
    loaded: list[Any] = []

    def load(package: ModelPackage, allowed: str | None = None, **arguments: Any) -> Any:
        folder = tmp_path / f"private{len(list(tmp_path.iterdir()))}"
        folder.mkdir(mode=0o700)
        settings = DetectorSettings("cpu", 1, program_sha256(package) if allowed is None else allowed)
        is_function = package.definition.kind == "python"
        values = resolve_arguments(package.definition, arguments).values if is_function else arguments
        detector = load_detector(package, {"threshold": 0.5, "nms_overlap": 0.5, **values}, settings, folder)
        loaded.append(detector)
        return detector

    yield load
    for detector in loaded:
        detector.close()


@pytest.fixture
def finder(tmp_path: Path, load: Load) -> Any:
    return load(open_package(str(write_finder(tmp_path / "model"))))


def small(folder: Path, source: str, **members: Any) -> ModelPackage:
    return open_package(str(write_finder(folder / "model", source, ImageHeight=32, ImageWidth=32, **members)))


def block(spots: dict[tuple[int, int, int, int], int], size: int = BLOCK, bands: int = 3, **of: Any) -> np.ndarray:
    """Give a batch of one block with bright rectangles (x0, y0, x1, y1) on black, and its mask."""
    pixels = np.zeros((1, bands + 1, size, size), of.get("dtype", np.uint8))
    pixels[:, -1] = 1
    for (x0, y0, x1, y1), value in spots.items():
        pixels[:, :-1, y0:y1, x0:x1] = value
    return pixels


def answer(load: Load, folder: Path, features: str, **parts: Any) -> Detections:
    """Give what becomes of a function's features; the block is 32 pixels wide, 4 of them padding."""
    found = load(small(folder, answering(features, **parts))).predict(block({}, 32))
    return found[0]


# -- The contract ------------------------------------------------------------------------------------------------------


def test_a_function_in_the_style_of_real_ones_finds_what_it_looks_for(finder: Any) -> None:
    (found,) = finder.predict(block({(20, 30, 50, 40): 200, (70, 10, 75, 90): 150}))
    assert sorted(found.boxes.tolist()) == [[20, 30, 50, 40], [70, 10, 75, 90]]
    assert [shape.area for shape in found.shapes] == [400, 300] or [shape.area for shape in found.shapes] == [300, 400]
    assert found.scores.tolist() == pytest.approx([0.975, 0.975])
    assert found.labels.tolist() == [0, 0]


def test_the_function_says_what_tiles_it_wants(finder: Any) -> None:
    traits = finder.traits
    assert (traits.network_size, traits.padding, traits.stride, traits.max_batch) == (BLOCK, 8, 1, 1)
    assert (traits.wants_raw, traits.is_dense, traits.geometry) == (True, False, "polygon")
    assert [(field["name"], field["type"], field["alias"]) for field in traits.fields] == [
        ("Note", "text", "Remark"),
        ("Pixels", "integer", "Pixels"),
        ("Mean", "number", "Mean"),
    ]


def test_attributes_of_its_own_are_passed_through(finder: Any) -> None:
    (found,) = finder.predict(block({(20, 30, 50, 40): 200}))
    assert found.attributes[0] == {
        "Note": f"uint8 (3, {BLOCK}, {BLOCK}) -1", "Pixels": 300, "Mean": 200.0, CLASS_TEXT: "Tree",
    }  # fmt: skip


def test_an_object_in_the_padding_is_where_it_is(finder: Any) -> None:
    (found,) = finder.predict(block({(0, 3, 6, 5): 200, (BLOCK - 4, BLOCK - 3, BLOCK, BLOCK): 200}))
    assert sorted(found.boxes.tolist()) == [[0, 3, 6, 5], [BLOCK - 4, BLOCK - 3, BLOCK, BLOCK]]


def test_pixels_without_data_are_masked(finder: Any) -> None:
    batch = block({(20, 30, 50, 40): 200, (60, 60, 80, 80): 200})
    batch[:, -1, 60:80, 60:80] = 0
    (found,) = finder.predict(batch)
    assert found.boxes.tolist() == [[20, 30, 50, 40]]


def test_a_block_without_objects_is_no_error(finder: Any) -> None:
    assert [len(found) for found in finder.predict(np.concatenate([block({}), block({(9, 9, 12, 12): 120})]))] == [0, 1]


def test_four_bands_of_16_bits_arrive_as_they_are(tmp_path: Path, load: Load) -> None:
    package = open_package(str(write_finder(tmp_path / "model", ExtractBands=[3, 2, 1, 0])))
    (found,) = load(package).predict(block({(20, 30, 50, 40): 4000}, bands=4, dtype=np.uint16))
    assert found.attributes[0]["Note"] == f"uint16 (4, {BLOCK}, {BLOCK}) -1"
    assert found.attributes[0]["Mean"] == 4000.0


def test_arguments_reach_the_function_and_defaults_fill_the_rest(tmp_path: Path, load: Load) -> None:
    package = open_package(str(write_finder(tmp_path / "model")))
    detector = load(package, padding=4, as_points=True, box_threshold=0.4, no_such=1, nms_overlap=0.3)
    assert (detector.traits.padding, detector.traits.network_size) == (4, 2 * (64 - 8) + 8)
    assert detector.traits.geometry == "point"
    (found,) = detector.predict(block({(20, 30, 50, 40): 200}, 120))
    assert [shape.wkt for shape in found.shapes] == ["POINT (35 35)"]
    assert found.boxes.tolist() == [[35, 35, 35, 35]]


def test_scalars_have_the_types_that_functions_expect(tmp_path: Path, load: Load) -> None:
    methods = """def initialize(self, **kwargs): self.given = kwargs
def getParameterInfo(self):
    return [{"name": "raster", "dataType": "raster"}, {"name": "model", "dataType": "string", "value": None},
            {"name": "device", "dataType": "numeric", "value": -2}, {"name": "n", "dataType": "numeric", "value": 4},
            {"name": "share", "dataType": "numeric", "value": 0.5},
            {"name": "whole", "dataType": "GPLong", "value": "3"},
            {"name": "yes", "dataType": "boolean", "value": True}, {"name": "no", "dataType": "boolean", "value": 0},
            {"name": "told", "dataType": "boolean", "value": "false"}, {"name": "text", "dataType": "string"},
            {"name": "number", "dataType": "string", "value": 0.3}]"""
    features = (
        '[{"geometry": {"x": 1, "y": 1}, "attributes": {"Class": '
        'json.dumps([{k: v for k, v in self.scalars.items() if k != "model"}, os.path.isfile(self.scalars["model"]), '
        'self.given["model"] == self.scalars["model"], json.load(open(self.given["model"]))["ModelFile"]])}}]'
    )
    found = answer(load, tmp_path, features, methods=methods)
    assert json.loads(found.attributes[0][CLASS_TEXT]) == [
        {"device": -1, "n": 4, "share": 0.5, "whole": 3, "yes": "True", "no": "False", "told": "False", "text": "",
         "number": "0.3"}, True, True, "finder.pth",
    ]  # fmt: skip


def test_the_raster_goes_by_the_name_that_the_function_gives_it(tmp_path: Path, load: Load) -> None:
    methods = 'def getParameterInfo(self): return [{"name": "image", "dataType": "raster"}]'
    features = '[{"geometry": {"x": 1, "y": 1}, "attributes": {"Class": " ".join(sorted(blocks))}}]'
    found = answer(load, tmp_path, features, methods=methods)
    assert found.attributes[0][CLASS_TEXT] == "image_mask image_pixels"


def test_pixels_are_brought_into_the_range_that_the_function_asks_for(tmp_path: Path, load: Load) -> None:
    features = '[{"geometry": {"x": 1, "y": 1}, "attributes": {"Class": str(blocks["raster_pixels"].max())}}]'
    source = answering(features, configuration='{"dataRange": (0, 1), "inputMask": False}')
    detector = load(small(tmp_path, source))
    (found,) = detector.predict(block({(0, 0, 5, 5): 65535}, 32, dtype=np.uint16))
    assert found.attributes[0][CLASS_TEXT] == "1.0"


@pytest.mark.parametrize(
    ("configuration", "error", "text"),
    [
        ('{"extractBands": (0, 1, 4)}', ModelIncompatibleError, r"\[0, 1, 4\].*\[0, 1, 2\]"),
        ('{"ty": 48}', ModelUnsupportedError, "24 x 48"),
        ('{"tx": 10**6, "ty": 10**6}', ModelUnsupportedError, "batch_size"),
        ('{"padding": -1}', ModelUnsupportedError, "padding of -1"),
        ('{"padding": "wide"}', ModelError, "getConfiguration.*wide"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    tmp_path: Path, load: Load, configuration: str, error: type[ModelError], text: str
) -> None:
    with pytest.raises(error, match=text):
        load(small(tmp_path, answering(configuration=configuration)))


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ("class Other: pass", ModelUnsupportedError, "no class 'Finder'"),
        ("class Finder:\n def updatePixels(self): pass", ModelUnsupportedError, "it makes rasters"),
        ("import no_such_library", BackendMissingError, "'no_such_library'"),
        ("from arcgis.learn import MaskRCNN", ModelUnsupportedError, "needs arcgis, a library of Esri"),
        ("this is no Python", ModelError, "SyntaxError"),
        ("raise SystemExit('bye')", ModelError, "in import.*bye"),
        (
            "class Finder:\n def __init__(self): self.x\n def vectorize(self): pass",
            ModelError,
            "in __init__.*Attribute",
        ),
        (answering(methods="def initialize(self, **_): raise ValueError('bad\\nweights')"), ModelError, "bad weights"),
        (answering(methods="def getFields(self): return 'x'"), ModelError, "getFields"),
        (answering(methods="def initialize(self, **_): os._exit(3)"), ModelError, "exit code 3"),
    ],
)
def test_a_program_that_cannot_start_is_told_in_a_sentence(
    tmp_path: Path, load: Load, source: str, error: type[ModelError], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        load(small(tmp_path, source))
    assert caught.value.hint or isinstance(caught.value, ModelUnsupportedError)
    assert "\n" not in caught.value.message


# -- Geometries and attributes -----------------------------------------------------------------------------------------

SQUARE, HOLE = [[0, 0], [20, 0], [20, 20], [0, 20]], [[5, 5], [10, 5], [10, 10], [5, 10], [5, 5]]


@pytest.mark.parametrize("rings", [[SQUARE, HOLE], [HOLE, SQUARE[::-1]], [SQUARE[::-1], HOLE[::-1]]])
def test_a_ring_inside_another_is_a_hole(tmp_path: Path, load: Load, rings: Any) -> None:
    found = answer(load, tmp_path, f'[{{"geometry": {{"rings": {rings}}}, "attributes": {{}}}}]')
    assert found.shapes[0].equals(shapely.Polygon(np.add(SQUARE, 4), [np.add(HOLE, 4)]))
    assert found.boxes.tolist() == [[4, 4, 24, 24]]


def read(geometry: Any, **attributes: Any) -> Detections:
    reader = FeatureReader(CLASSES, fields_from_esri([]), 0)
    return reader.read(json.dumps({"features": [{"geometry": geometry, "attributes": attributes}]}).encode())


def test_parts_beside_each_other_are_one_object() -> None:
    found = read({"rings": [SQUARE, np.add(SQUARE, 30).tolist(), HOLE]})
    assert (found.shapes[0].geom_type, found.shapes[0].area) == ("MultiPolygon", 775)


def test_a_ring_that_crosses_itself_becomes_valid_areas() -> None:
    found = read({"rings": [[[0, 0], [10, 10], [10, 0], [0, 10]]]})
    assert found.shapes[0].is_valid
    assert found.shapes[0].area == 50


def test_lines_and_points_are_read() -> None:
    assert read({"paths": [[[0, 0], [3, 4]]]}).shapes[0].wkt == "LINESTRING (0 0, 3 4)"
    assert read({"paths": [[[0, 0], [3, 4]], [[5, 5], [6, 6]]]}).shapes[0].geom_type == "MultiLineString"
    assert read({"x": "1.5", "y": -2}).shapes[0].wkt == "POINT (1.5 -2)"
    assert [shape.wkt for shape in read({"points": [[1, 2], [3, 4]]}).shapes] == ["POINT (1 2)", "POINT (3 4)"]


@pytest.mark.parametrize(
    "geometry",
    [{}, None, {"rings": []}, {"rings": [[[0, 0], [1, 1]]]}, {"rings": [[[0, 0], [5, 0], [float("nan"), 5]]]},
     {"rings": 3}, {"x": None, "y": 1}, {"x": 1e999, "y": 1}, {"paths": [[[1, 1]]]},
     {"rings": [[[0, 0], [5, 0], [9]]]}],
)  # fmt: skip
def test_an_object_that_is_nowhere_is_left_out(geometry: Any) -> None:
    assert len(read(geometry)) == 0


@pytest.mark.parametrize(
    ("confidence", "score"),
    [(97.3, 0.973), ("97.3", 0.973), ("97.3 %", 0.973), (0.6, 0.6), ("0.6", 0.6), (1, 1), (None, 1), (250, 1), (-3, 0),
     ("much", 1)],
)  # fmt: skip
def test_confidences_are_read_as_numbers_texts_and_percentages(confidence: Any, score: float) -> None:
    assert read({"x": 1, "y": 1}, Confidence=confidence).scores.tolist() == pytest.approx([score])


@pytest.mark.parametrize(
    ("attributes", "label", "text"),
    [
        ({"Class": "Shrub"}, 1, "Shrub"),
        ({"CLASS": "shrub"}, 1, "shrub"),
        ({"Classname": "Tree", "Classvalue": 7}, 0, "Tree"),
        ({"Classvalue": 9}, 1, "9"),
        ({"Value": "9"}, 1, "9"),
        ({"Class": "green thing", "Value": 9}, 1, "green thing"),
        ({"Label": "Car"}, 0, "Car"),
        ({}, 0, None),
    ],
)
def test_classes_are_found_by_name_and_value_and_no_text_is_lost(
    attributes: dict[str, Any], label: int, text: str | None
) -> None:
    found = read({"x": 1, "y": 1}, **attributes)
    assert (found.labels.tolist(), found.attributes[0][CLASS_TEXT]) == ([label], text)


def test_attributes_get_the_types_of_their_fields() -> None:
    fields = fields_from_esri([
        {"name": "A", "type": "esriFieldTypeSmallInteger"}, {"name": "B", "type": "esriFieldTypeDouble"},
        {"name": "C", "type": "esriFieldTypeString"}, {"name": "D", "type": "esriFieldTypeBlob"},
        {"name": "a", "type": "esriFieldTypeString"}, {"name": "FID", "type": "esriFieldTypeInteger"},
    ])  # fmt: skip
    assert [field["name"] for field in fields] == ["A", "B", "C"]
    attributes = {"a": "3.0", "B": "x", "C": [1], "E": 1}
    text = json.dumps({"features": [{"geometry": {"x": 1, "y": 1}, "attributes": attributes}]})
    found = FeatureReader(CLASSES, fields, 0).read(text.encode())
    assert found.attributes is not None
    assert found.attributes[0] == {"A": 3, "B": None, "C": "[1]", CLASS_TEXT: None}


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"features": 3}', b"[" * 100_000, b'{"x": ' + b"9" * 9000 + b"}"])
def test_a_text_that_is_no_feature_set_is_an_error_of_the_tile(text: bytes) -> None:
    with pytest.raises(TileError):
        FeatureReader(CLASSES, (), 0).read(text)


@given(st.recursive(st.none() | st.floats() | st.text(max_size=5) | st.integers(), lambda inner: st.lists(inner) |
                    st.dictionaries(st.sampled_from(["rings", "paths", "x", "y", "points", "attributes", "geometry",
                                                     "Class", "Confidence"]), inner), max_leaves=20))  # fmt: skip
def test_any_features_become_detections(content: Any) -> None:
    found = FeatureReader(CLASSES, fields_from_esri([]), 3).read(json.dumps({"features": [content]}).encode())
    assert np.isfinite(found.boxes).all()


# -- Failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "text"), [(201, "RuntimeError: this block is poison"), (203, "leaving")])
def test_a_function_that_fails_on_a_block_goes_on_with_the_next(finder: Any, value: int, text: str) -> None:
    with pytest.raises(TileError, match=text):
        finder.predict(block({(20, 30, 50, 40): value}))
    assert len(finder.predict(block({(20, 30, 50, 40): 200}))[0]) == 1


def test_a_function_without_memory_asks_for_smaller_batches(finder: Any) -> None:
    with pytest.raises(DeviceMemoryError, match="memory"):
        finder.predict(block({(20, 30, 50, 40): 204}))


def test_a_process_that_dies_on_a_tile_is_started_again(finder: Any) -> None:
    with pytest.raises(TileError, match="exit code 7") as caught:
        finder.predict(block({(20, 30, 50, 40): 202}))
    assert "print of vectorize" in caught.value.context["stderr_tail"][-1]
    assert len(finder.predict(block({(20, 30, 50, 40): 200}))[0]) == 1


def test_a_process_that_dies_again_and_again_is_an_error_of_the_model(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted_detector, "MAX_DEATHS", 1)
    detector = load(small(tmp_path, answering(before="os._exit(9)")))
    with pytest.raises(TileError, match="exit code 9"):
        detector.predict(block({}, 32))
    with pytest.raises(ModelError, match="exit code 9") as caught:
        detector.predict(block({}, 32))
    assert not isinstance(caught.value, TileError)
    with pytest.raises(ModelError, match="died"):
        detector.predict(block({}, 32))


def test_a_process_that_does_not_answer_is_ended(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = load(small(tmp_path, answering(before="__import__('time').sleep(60)")))
    process = detector._host._process
    monkeypatch.setattr(hosted_detector, "ANSWER_LIMIT", 0.5)
    with pytest.raises(ModelError, match="did not answer"):  # on a slow machine the new start takes too long, too
        detector.predict(block({}, 32))
    assert process.poll() is not None


def test_what_a_function_prints_goes_to_the_log_and_garbles_nothing(
    tmp_path: Path, load: Load, capfd: pytest.CaptureFixture[str]
) -> None:
    before = "print('x' * 70_000); os.write(1, b'y' * 70_000); os.system('echo from a child'); sys.stdin.read()"
    detector = load(small(tmp_path, answering(before=before)))
    assert [len(found) for found in detector.predict(block({}, 32))] == [0]
    detector.close()
    log = capfd.readouterr().err
    assert (log.count("x"), log.count("y")) == (70_000, 70_000)
    assert "from a child" in log


def test_a_program_that_writes_without_end_does_not_fill_the_disk_and_goes_on(
    tmp_path: Path, load: Load, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted_detector, "MAX_LOG", 100_000)
    detector = load(small(tmp_path, answering(before="[os.write(2, b'z' * 999 + b'\\n') for _ in range(2000)]")))
    assert [len(found) for found in detector.predict(np.concatenate([block({}, 32)] * 2))] == [0, 0]
    detector.close()
    log = capfd.readouterr().err
    assert 99_000 < log.count("z") < 103_000
    assert 1 == log.count("what it writes from here on is left out")


@pytest.mark.parametrize("ends", ["os._exit(5)", "__import__('threading').Timer(0.1, os._exit, [5]).start()"])
def test_a_program_that_dies_and_leaves_a_child_with_its_pipes_is_not_waited_for(
    tmp_path: Path, load: Load, ends: str
) -> None:
    before = f"os.fork() or (__import__('time').sleep(15), os._exit(0)); {ends}"
    detector = load(small(tmp_path, answering(before=before)))
    start = time.monotonic()
    with pytest.raises(TileError, match="exit code 5"):
        for _ in range(2):  # the second block, of more than a pipe holds, goes to nobody
            detector.predict(block({}, 32))
            time.sleep(0.5)
    assert time.monotonic() - start < 12


FORGED = [
    {"fields": [1, None, "x", {"name": [1], "type": {}}, {"name": "A\ud800\n", "type": "esriFieldTypeString"}]},
    {"fields": {"name": 1}}, {"geometry": []}, {"geometry": {}}, {"bands": [[]]}, {"bands": 3}, {"bands": None},
    {"padding": None}, {"padding": True}, {"tx": "x"}, {"ty": 1e300}, {"tx": [], "ty": []}, {"geometry": True},
]  # fmt: skip
"""Members of a first answer that are not what they should be."""


class ForgingHost:
    """Stands where the process is, and gives an answer that a program wrote itself."""

    def __init__(self, members: dict[str, Any] | None = None, **arrays: Any) -> None:
        self.members, self.arrays = members, arrays

    def start(self, request: Frame) -> Any:
        frame = Frame("ready", self.members or {})
        answer = read_frame(io.BytesIO(sent(frame)))
        assert answer is not None
        return answer.members

    def find(self, arrays: Any) -> Any:
        return {name: np.asarray(array) for name, array in self.arrays.items()}

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize("members", FORGED)
def test_a_forged_first_answer_is_read_or_refused(tmp_path: Path, members: dict[str, Any]) -> None:
    package = small(tmp_path, answering())
    told = {"bands": [0, 1, 2], "padding": 4, "tx": 24, "ty": 24, "fields": [], "geometry": 4, **members}
    arguments = resolve_arguments(package.definition, {}).values
    try:
        folder = tmp_path / "model"
        detector = hosted_detector._raster_function(ForgingHost(told), package, folder, arguments, -1)
    except (ModelUnsupportedError, ModelIncompatibleError):
        assert not {"fields", "geometry"} & set(members)
        return
    assert [field["name"] for field in detector.traits.fields] in ([], ["A?"])


@pytest.mark.parametrize(
    "arrays",
    [
        {}, {"counts": 1}, {"counts": [1.0]}, {"counts": [[1]]}, {"counts": [-1]}, {"counts": [2**63]},
        {"counts": [2]}, {"boxes": [1, 2, 3, 4]}, {"boxes": 7.0}, {"boxes": [[1, 2, 3]]}, {"boxes": [[1j, 2, 3, 4]]},
        {"scores": 0.5}, {"scores": [[0.5]]}, {"scores": [0.5j]}, {"labels": []}, {"labels": [1j]},
        {"labels": [1e300]}, {"labels": [-1e300]}, {"labels": [-np.inf]}, {"masks": 3}, {"masks": [[[0.5]]]},
        {"masks": np.zeros((1, 3), np.uint8)}, {"masks": np.zeros((2, 3, 3), np.uint8)},
    ],
)  # fmt: skip
def test_forged_detections_are_read_or_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    definition = folder_package(tmp_path, "net.pt", kind="torchscript", weights="net.pt").definition
    good = {"counts": [1], "boxes": [[1.0, 2, 3, 4]], "scores": [0.9], "labels": [1],
            "masks": np.full((1, 32, 4), 255, np.uint8)}  # fmt: skip
    traits = hosted_detector.Traits(stride=32, receptive_field_radius=None, is_dense=False, geometry="polygon")
    host = ForgingHost(None, **{**good, **arrays})
    detector = hosted_detector.TorchScriptDetector(host, traits, definition, 1, 0.5)
    try:
        (found,) = detector.predict(np.zeros((1, 3, 32, 32), np.uint8))
    except ProtocolError:
        return
    assert (not arrays) == (len(found) == 1)


@pytest.mark.parametrize(
    "told", [5, [1], {"output0": ["float32", 1]}, {"raw:a": 5}, {"raw:a": ["float32", 1.5]}, {"raw:a": [1, 6, 21]},
             {"raw:a": []}, {"raw:a": ["float32", 1, -6]}, {"raw:a": ["complex64", 1]}, {"raw:a": ["float32", []]},
             {"raw:a": ["float32", 1, 6, 21], "b": 5}],
)  # fmt: skip
def test_a_forged_description_of_a_bare_output_is_refused(tmp_path: Path, told: Any) -> None:
    package = folder_package(tmp_path, "net.pt", kind="torchscript", weights="net.pt")
    arguments = resolve_arguments(package.definition, {}).values
    with pytest.raises(ProtocolError):
        bare_output(ForgingHost(), told, package, arguments, DetectorSettings())


@pytest.mark.parametrize(
    "arrays",
    [{}, {"boxes": [[[1.0]]]}, {"raw:b": np.zeros((1, 7, 21))}, {"raw:a": 5.0}, {"raw:a": np.zeros((1, 9, 21))},
     {"raw:a": np.zeros((1, 7, 22))}, {"raw:a": np.zeros((2, 3))}, {"raw:a": np.zeros((1, 7, 21), complex)}],
)  # fmt: skip
def test_a_forged_bare_output_is_refused(tmp_path: Path, arrays: dict[str, Any]) -> None:
    (tmp_path / "net.pt").write_bytes(b"")
    options = {"head": "yolov8"}
    tile = TileSpec(32, is_variable=False, stride=32, receptive_field_radius=8)
    package = folder_package(tmp_path, "net.pt", kind="torchscript", weights="net.pt", options=options, tile=tile)
    arguments = resolve_arguments(package.definition, {}).values
    n = 4 + len(package.definition.classes)
    detector = bare_output(
        ForgingHost(None, **arrays), {"raw:a": ["float32", 1, n, 21]}, package, arguments, DetectorSettings()
    )
    with pytest.raises((ProtocolError, ModelIncompatibleError)):
        detector.predict(np.zeros((1, 3, 32, 32), np.uint8))


@pytest.mark.parametrize("told", [{"kind": [1], "message": {}}, {"message": "a\ud800\n" * 9000}, {"missing": 3}])
@pytest.mark.parametrize("is_start", [True, False])
def test_a_forged_error_is_an_error_like_others(told: dict[str, Any], is_start: bool) -> None:
    error = hosted_detector._error(told, is_start=is_start)
    assert len(error.message.encode("utf-8")) < 5000
    assert "\n" not in error.message


@pytest.mark.parametrize("depth", [100, 900, 990])
def test_attributes_that_are_nested_deeply_are_read_or_an_error_of_the_tile(depth: int) -> None:
    fields = fields_from_esri([{"name": "A", "type": "esriFieldTypeString"}])
    deep = "[" * depth + "]" * depth
    text = f'{{"features": [{{"geometry": {{"x": 1, "y": 1}}, "attributes": {{"A": {deep}, "Class": {deep}}}}}]}}'
    with contextlib.suppress(TileError):
        assert 1 == len(FeatureReader(CLASSES, fields, 0).read(text.encode()))


def test_output_that_is_no_answer_is_an_error_of_the_tile(tmp_path: Path, load: Load) -> None:
    detector = load(small(tmp_path, answering(vectors="3.5j")))
    with pytest.raises(TileError, match="complex"):
        detector.predict(block({}, 32))


def test_numpy_values_and_dicts_are_read_too(tmp_path: Path, load: Load) -> None:
    vectors = (
        '{"features": [{"geometry": {"rings": [np.array([[0, 0], [4, 0], [4, 4]])]}, '
        '"attributes": {"Confidence": np.float32(50), "Class": "Shrub"}}]}'
    )
    found = answer(load, tmp_path, "", vectors=vectors, before="import numpy as np")
    assert (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()) == ([[4, 4, 8, 8]], [0.5], [1])


def test_nothing_at_all_means_no_objects(tmp_path: Path, load: Load) -> None:
    assert len(answer(load, tmp_path, "", vectors="None")) == 0


# -- Consent and isolation ---------------------------------------------------------------------------------------------


def test_without_consent_nothing_runs_and_the_hash_is_told(tmp_path: Path, load: Load) -> None:
    canary = tmp_path / "canary"
    package = small(tmp_path, f"open({str(canary)!r}, 'w')\n" + answering())
    with pytest.raises(UntrustedCodeError, match="has not been allowed") as caught:
        load(package, allowed="")
    assert f"ALLOW_PACKAGE_CODE={program_sha256(package)}" in caught.value.hint
    assert caught.value.code == "untrusted-code"
    assert not canary.exists()


def test_a_program_that_changed_after_the_consent_does_not_run(tmp_path: Path, load: Load) -> None:
    canary = tmp_path / "canary"
    package = small(tmp_path, answering())
    allowed = program_sha256(package)
    (tmp_path / "model" / "prf_utils.py").write_text(f"open({str(canary)!r}, 'w')")
    with pytest.raises(UntrustedCodeError, match="not the one that was allowed"):
        load(package, allowed=allowed)
    assert not canary.exists()


def test_what_changes_after_the_start_has_no_effect(tmp_path: Path, load: Load) -> None:
    package = small(tmp_path, answering(before="import prf_utils"))
    detector = load(package)
    (tmp_path / "model" / "prf_utils.py").write_text("raise ValueError('changed')")
    assert len(detector.predict(block({}, 32))[0]) == 0


def test_nothing_of_the_package_is_imported_in_this_process(finder: Any, tmp_path: Path) -> None:
    finder.predict(block({}))
    assert not {"Finder", "prf_utils", "arcpy", "GPUtil"} & set(sys.modules)
    assert not [path for path in sys.path if str(tmp_path) in path]


def test_a_file_of_the_package_stands_before_no_library(tmp_path: Path, load: Load) -> None:
    package = small(tmp_path, answering(before="import json, numpy, colorsys, random"))
    for name in ("json", "numpy", "os", "colorsys", "random", "torch"):
        (tmp_path / "model" / f"{name}.py").write_text(f"raise SystemError('{name} of the package')")
    assert len(load(package).predict(block({}, 32))[0]) == 0


def test_a_function_named_like_a_module_of_python_does_not_replace_it(tmp_path: Path, load: Load) -> None:
    write_finder(tmp_path / "model", "", InferenceFunction="colorsys.py", ImageHeight=32, ImageWidth=32)
    source = answering(before="import colorsys as other; other.rgb_to_hls").replace("class Finder", "class colorsys")
    (tmp_path / "model" / "colorsys.py").write_text(source)
    detector = load(open_package(str(tmp_path / "model" / "Finder.emd")))
    assert len(detector.predict(block({}, 32))[0]) == 0


def test_the_process_works_in_an_empty_folder_without_secrets(
    tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:canary@proxy:1")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:1")
    told = 'json.dumps([os.listdir("."), dict(os.environ), sys.path, sys.flags.isolated])'
    methods = 'def getFields(self): return {"fields": [{"name": "Note", "type": "esriFieldTypeString"}]}'
    only_ours = (  # an attribute's text has a limit
        "sys.path = [p for p in sys.path if 'private' in p or 'plugins' in p]; "
        "[os.environ.pop(n) for n in list(os.environ) if 'PROXY' not in n and 'TOKEN' not in n]"
    )
    features = f'[{{"geometry": {{"x": 1, "y": 1}}, "attributes": {{"Note": {told}}}}}]'
    found = answer(load, tmp_path, features, methods=methods, before=only_ours)
    files, environment, path, isolated = json.loads(found.attributes[0]["Note"])
    assert files == []
    assert environment == {"HTTP_PROXY": "http://proxy:1"}
    assert [Path(place).name for place in path] == ["program"]
    assert isolated == 1


def test_the_process_ends_with_the_one_that_started_it(tmp_path: Path, repository: Path) -> None:
    write_finder(tmp_path / "model", answering(), ImageHeight=32, ImageWidth=32)
    code = (
        "import sys, pathlib, os; sys.path.insert(0, sys.argv[1])\n"
        "from kestrel.inference.detectors import load_detector\n"
        "from kestrel.inference.detectors.protocol import DetectorSettings\n"
        "from kestrel.inference.models.package import open_package\n"
        "from kestrel.inference.models.program import program_sha256\n"
        "package = open_package(sys.argv[2])\n"
        "folder = pathlib.Path(sys.argv[3]); folder.mkdir()\n"
        "settings = DetectorSettings('cpu', 1, program_sha256(package))\n"
        "detector = load_detector(package, {'program': {}}, settings, folder)\n"
        "print(detector._host._process.pid, flush=True)\n"
        "os._exit(0)\n"  # no tear-down: only the closed pipe tells the host
    )
    arguments = [str(repository / "build" / "plugins"), str(tmp_path / "model" / "Finder.emd"), str(tmp_path / "p")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    host, end = int(done.stdout), time.monotonic() + 5
    while is_alive(host) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_alive(host)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_closing_ends_the_process(finder: Any) -> None:
    finder.close()
    assert finder._host._process.poll() is not None


# -- Forms of packages -------------------------------------------------------------------------------------------------


def test_a_package_one_folder_deep_with_a_damaged_definition_runs(tmp_path: Path, load: Load) -> None:
    folder = tmp_path / "model"
    emd = write_finder(folder).read_text().replace(', "ModelName"', ' "ModelName"')  # a comma less
    names = ["Finder.py", "prf_utils.py", "finder.pth"]
    entries = [("deep\\" + name, (folder / name).read_bytes()) for name in names]
    path = write_zip(tmp_path / "m.dlpk", [("deep\\Finder.emd", b"\xef\xbb\xbf" + emd.encode()), *entries])
    (found,) = load(open_package(str(path))).predict(block({(20, 30, 50, 40): 200}))
    assert found.boxes.tolist() == [[20, 30, 50, 40]]


def test_a_definition_given_as_text_runs(tmp_path: Path, load: Load) -> None:
    folder = tmp_path / "model"
    content = json.loads(write_finder(folder).read_text())
    (tmp_path / "elsewhere.pth").write_bytes(b"w")
    content.update(InferenceFunction=str(folder / "Finder.py"), ModelFile=str(tmp_path / "elsewhere.pth"))
    (found,) = load(open_package(json.dumps(content))).predict(block({(20, 30, 50, 40): 200}))
    assert found.boxes.tolist() == [[20, 30, 50, 40]]


# -- Surroundings of the function --------------------------------------------------------------------------------------


def test_the_stand_in_for_arcpy_has_settings_and_messages(capsys: pytest.CaptureFixture[str]) -> None:
    arcpy = shims.make_arcpy(-1)
    assert (arcpy.env.processorType, arcpy.env.anythingElse) == ("CPU", None)
    arcpy.env.processorType = "GPU"
    assert arcpy.env.processorType == "GPU"
    arcpy.AddWarning("careful")
    assert capsys.readouterr().err == "warning: careful\n"
    with pytest.raises(AttributeError, match="only ArcGIS has"):
        _ = arcpy.Polygon
    assert not hasattr(arcpy, "__path__")


def test_the_stand_in_for_gputil_knows_the_chosen_gpu() -> None:
    assert shims.make_gputil(1).getFirstAvailable(order="memory") == [1]
    assert shims.make_gputil(-1).getAvailable() == []
    with pytest.raises(RuntimeError):
        shims.make_gputil(-1).getFirstAvailable()


def test_the_stand_in_for_distutils_compares_versions() -> None:
    modules = shims.make_distutils()
    version = modules["distutils"].version.LooseVersion
    assert version("1.10.2") > version("1.9")
    assert version("2.0") >= "2.0"
    assert version("1.5.0a1") != version("1.5.0")
    assert not version("1.0") < version("1.0")
    assert modules["distutils.util"].strtobool("Yes") == 1


def test_names_that_numpy_has_dropped_come_back_in_the_host_only(tmp_path: Path, load: Load) -> None:
    names = "float int bool object str complex float_ Inf NaN product"
    answer(load, tmp_path, "[]", before=f"import numpy; [getattr(numpy, name) for name in '{names}'.split()]")
    assert not hasattr(np, "float")


# -- Frames ------------------------------------------------------------------------------------------------------------


def sent(frame: Frame) -> bytes:
    stream = io.BytesIO()
    write_frame(stream, frame)
    return stream.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64", "bool"])
def test_a_frame_comes_through_as_it_was(dtype: str) -> None:
    arrays = {"a": np.arange(24).reshape(2, 3, 4).astype(dtype)[:, ::-1], "none": np.zeros((0, 4), dtype)}
    frame = read_frame(io.BytesIO(sent(Frame("block", {"x": [1, "ä", None]}, arrays))))
    assert frame is not None
    assert (frame.type, frame.members) == ("block", {"x": [1, "ä", None]})
    for name, array in arrays.items():
        np.testing.assert_array_equal(frame.arrays[name], array)
        assert frame.arrays[name].dtype == array.dtype
        assert frame.arrays[name].flags.writeable


def test_the_end_between_frames_is_told_apart_from_one_in_their_middle() -> None:
    data = sent(Frame("block", {}, {"a": np.arange(5)}))
    assert read_frame(io.BytesIO(b"")) is None
    for n_bytes in range(1, len(data)):
        with pytest.raises(ProtocolError):
            read_frame(io.BytesIO(data[:n_bytes]))


def framed(header: bytes) -> io.BytesIO:
    return io.BytesIO(struct.pack(">I", len(header)) + header + b"\0" * 64)


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"{}", b'{"type": 1, "arrays": []}', b'{"type": "x", "arrays": {}}', b"[" * 100_000,
        b'{"type": "x", "arrays": [], "n": NaN}', b"\xff",
        b'{"type": "x", "arrays": [{"name": "a", "dtype": "object", "shape": [1]}]}',
        b'{"type": "x", "arrays": [{"name": "a", "dtype": "uint8", "shape": [-1]}]}',
        b'{"type": "x", "arrays": [{"name": "a", "dtype": "uint8", "shape": [true]}]}',
        b'{"type": "x", "arrays": [{"name": "a", "dtype": "float64", "shape": [1048576, 1048576, 1048576]}]}',
        b'{"type": "x", "arrays": [{"name": "a", "dtype": ["u1"], "shape": [1]}]}',
        b'{"type": "x", "arrays": [' + b",".join([b"3"] * 17) + b"]}",
    ],
)  # fmt: skip
def test_a_frame_that_cannot_be_is_refused(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_frame(framed(header))


def test_a_header_that_is_too_long_is_neither_sent_nor_read() -> None:
    with pytest.raises(ProtocolError, match="too long"):
        write_frame(io.BytesIO(), Frame("x", {"text": "x" * frames.MAX_HEADER}))
    with pytest.raises(ProtocolError, match="too long"):
        read_frame(io.BytesIO(struct.pack(">I", frames.MAX_HEADER + 1)))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_refused(data: bytes) -> None:
    for stream in (io.BytesIO(data), framed(data)):
        try:
            read_frame(stream)
        except ProtocolError:
            continue


# -- TorchScript -------------------------------------------------------------------------------------------------------


class Brightest(torch.nn.Module):
    """Gives one box around what is brighter than 1, in torchvision's form."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        found: list[dict[str, torch.Tensor]] = []
        for image in images:
            rows, columns = torch.where(image[0] > 1.0)
            if len(rows) == 0:
                boxes = torch.zeros((0, 4))
            else:
                corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                boxes = torch.stack(corners).float().unsqueeze(0)
            n = boxes.shape[0]
            labels = torch.full((n,), 2, dtype=torch.int64)
            found.append({"boxes": boxes, "labels": labels, "scores": torch.full((n,), 0.75)})
        return found


class Tensors(torch.nn.Module):
    """Gives three tensors, of which the labels come before the scores."""

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]) + batch.sum() * 0
        return boxes, torch.tensor([1, 2]), torch.tensor([0.9, 0.4])


class Batched(torch.nn.Module):
    """Gives three tensors with a batch axis; its one box looks like a row of four numbers."""

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        boxes = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]) + batch.sum() * 0
        return boxes, torch.tensor([[0.9]]), torch.tensor([[2.0]])


class Table(torch.nn.Module):
    """Gives one tensor of six columns."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[[1.0, 2.0, 3.0, 4.0, 0.8, 1.0], [1.0, 2.0, 3.0, 4.0, 0.7, 9.0]]]) + batch.sum() * 0


class Masked(torch.nn.Module):
    """Gives a box with a mask of two parts, one with a hole, and a box whose mask is empty."""

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        boxes = torch.tensor([[2.0, 2.0, 20.0, 20.0], [2.0, 2.0, 9.0, 9.0]]) + batch.sum() * 0
        masks = torch.zeros((2, 1, 32, 32))
        masks[0, 0, 2:10, 2:12] = 0.9
        masks[0, 0, 4:6, 4:6] = 0.1
        masks[0, 0, 15:20, 15:20] = 0.5
        return boxes, torch.tensor([1, 1]), torch.tensor([0.9, 0.8]), masks


class Picture(torch.nn.Module):
    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch


def scripted(folder: Path, network: torch.nn.Module, **of: Any) -> ModelPackage:
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch no longer recommends what packages are full of
        torch.jit.save(torch.jit.script(network), str(folder / "net.pt"))
    members = {"input": InputSpec(scale=(0.1,)), "tile": TileSpec(32), "geometry": "box", **of}
    return folder_package(folder, "net.pt", kind="torchscript", weights="net.pt", **members)


def test_torchscript_in_torchvisions_form_runs_in_batches(tmp_path: Path, load: Load) -> None:
    detector = load(scripted(tmp_path / "m", Brightest()))
    batch = np.zeros((3, 3, 32, 32), np.uint8)
    batch[0, :, 4:9, 2:20] = 50
    batch[2, :, 4:9, 2:20] = 9
    first, second, third = detector.predict(batch)
    assert (first.boxes.tolist(), first.scores.tolist(), first.labels.tolist()) == ([[2, 4, 20, 9]], [0.75], [1])
    assert (len(second), len(third)) == (0, 0)
    assert detector.traits.max_batch is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "offset", "found"),
    [
        (Tensors(), 1, [([1, 2, 3, 4], 0)]),
        (Batched(), 2, [([1, 2, 3, 4], 0)]),
        (Batched(), 1, [([1, 2, 3, 4], 1)]),
        (Table(), 0, [([1, 2, 3, 4], 1)]),
    ],
)
def test_torchscript_with_other_outputs_runs_image_by_image(
    tmp_path: Path, load: Load, network: torch.nn.Module, offset: int, found: list[Any]
) -> None:
    detector = load(scripted(tmp_path / "m", network, options={"label_offset": offset}))
    assert detector.traits.max_batch == 1
    (detections,) = detector.predict(np.zeros((1, 3, 32, 32), np.uint8))
    assert list(zip(detections.boxes.tolist(), detections.labels.tolist())) == found


@pytest.mark.slow
def test_masks_of_torchscript_become_outlines(tmp_path: Path, load: Load) -> None:
    detector = load(scripted(tmp_path / "m", Masked(), geometry="polygon"))
    assert detector.traits.geometry == "polygon"
    (found,) = detector.predict(np.zeros((1, 3, 32, 32), np.uint8))
    assert [(shape.geom_type, shape.area, shape.bounds) for shape in found.shapes] == [
        ("MultiPolygon", 80 - 4 + 25, (2, 2, 20, 20))
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("geometry", "return_bboxes"), [("box", False), ("polygon", True)])
def test_masks_are_left_out_where_boxes_are_wanted(
    tmp_path: Path, load: Load, geometry: str, return_bboxes: bool
) -> None:
    detector = load(scripted(tmp_path / "m", Masked(), geometry=geometry), return_bboxes=return_bboxes)
    (found,) = detector.predict(np.zeros((1, 3, 32, 32), np.uint8))
    assert (len(found), found.shapes, detector.traits.geometry) == (2, None, "box")


@pytest.mark.slow
def test_torchscript_with_an_output_that_is_not_known_is_refused_with_what_it_gave(tmp_path: Path, load: Load) -> None:
    with pytest.raises(ModelUnsupportedError, match="none that Kestrel knows"):
        load(scripted(tmp_path / "m", Picture()))


def test_torchscript_needs_consent_too(tmp_path: Path, load: Load) -> None:
    with pytest.raises(UntrustedCodeError, match=r"net\.pt"):
        load(scripted(tmp_path / "m", Table()), allowed="")


@pytest.mark.slow
def test_a_file_that_is_no_torchscript_is_told(tmp_path: Path, load: Load) -> None:
    package = scripted(tmp_path / "m", Table())
    (tmp_path / "m" / "net.pt").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="in load"):
        load(package)


# -- From the raster to the map ----------------------------------------------------------------------------------------


def spotted_raster(folder: Path, spots: list[tuple[int, int]], **values: int) -> Path:
    """Write a black raster of 300 x 200 pixels of 0.5 m with bright squares of 6 pixels."""
    pixels = np.zeros((3, 200, 300), np.uint8)
    for x, y in spots:
        pixels[:, y : y + 6, x : x + 6] = values.get("value", 200)
    return write_raster(folder / "spots.tif", pixels)


def test_objects_of_a_raster_function_lie_where_they_are_on_the_map(tmp_path: Path) -> None:
    spots = [(x, y) for y in range(3, 190, 17) for x in range(2, 290, 19)]
    model = write_finder(tmp_path / "model")
    allowed = program_sha256(open_package(str(model)))
    raster = spotted_raster(tmp_path, spots)
    result = run(tmp_path / "job", raster, model, allowed_code=allowed)
    with rasterio.open(raster) as dataset:
        transform = dataset.transform
    corners = [(transform @ (x, y), transform @ (x + 6, y + 6)) for x, y in spots]
    expected = sorted((min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1])) for a, b in corners)
    np.testing.assert_allclose(sorted(map(tuple, result.bounds)), expected)
    assert {item["Pixels"] for part in result.objects for item in part.attributes or []} == {36}


def test_points_of_a_raster_function_are_points_on_the_map(tmp_path: Path) -> None:
    spots = [(20, 30), (93, 90), (250, 150)]
    model = write_finder(tmp_path / "model")
    allowed = program_sha256(open_package(str(model)))
    raster = spotted_raster(tmp_path, spots)
    result = run(tmp_path / "job", raster, model, allowed_code=allowed, arguments={"as_points": True})
    assert sorted(shape.geom_type for shape in result.geometries) == ["Point"] * 3


def test_a_tile_on_which_a_function_fails_is_put_aside(tmp_path: Path) -> None:
    model = write_finder(tmp_path / "model")
    allowed = program_sha256(open_package(str(model)))
    pixels = np.zeros((3, 200, 300), np.uint8)
    pixels[:, 10:16, 10:16], pixels[:, 150:156, 250:256] = 201, 200
    result = run(tmp_path / "job", write_raster(tmp_path / "spots.tif", pixels), model, allowed_code=allowed)
    assert len(result) == 1
    assert [message.id for message in result.messages("warning")] == ["quarantined"]


def test_a_run_without_consent_is_refused(tmp_path: Path) -> None:
    model = write_finder(tmp_path / "model")
    with pytest.raises(UntrustedCodeError):
        run(tmp_path / "job", spotted_raster(tmp_path, [(20, 30)]), model)


def test_what_a_function_keeps_at_the_edges_of_its_blocks_stays_and_two_halves_are_one(tmp_path: Path) -> None:
    # Without padding a function sees each half of what lies on a seam.
    model = write_finder(tmp_path / "model", ImageHeight=64, ImageWidth=64)
    allowed = program_sha256(open_package(str(model)))
    raster = spotted_raster(tmp_path, [(10, 10), (61, 40)])
    arguments = {"padding": 0, "batch_size": 1}
    result = run(tmp_path / "job", raster, model, allowed_code=allowed, arguments=arguments)
    assert [9, 9] == [shape.area for shape in result.geometries]  # 6 x 6 pixels of half a metre


INNER_ONLY = "def keeps(self, x, y): return 0 <= x < 24 and 0 <= y < 24"


def test_a_function_that_keeps_its_inner_block_only_finds_what_lies_at_the_rasters_edge(tmp_path: Path) -> None:
    spots = (
        "[{'geometry': {'x': float(x) - 4, 'y': float(y) - 4}, 'attributes': {'Class': 'Tree'}} for y, x in "
        "__import__('numpy').argwhere(blocks['raster_pixels'][0] == 200) if self.keeps(x - 4, y - 4)]"
    )
    model = write_finder(tmp_path / "model", answering(spots, methods=INNER_ONLY), ImageHeight=32, ImageWidth=32)
    pixels = np.zeros((3, 70, 90), np.uint8)
    for row, column in ((0, 0), (1, 50), (35, 2), (69, 89), (30, 45)):
        pixels[:, row, column] = 200
    raster = write_raster(tmp_path / "dots.tif", pixels)
    allowed = program_sha256(open_package(str(model)))
    result = run(tmp_path / "job", raster, model, allowed_code=allowed)
    assert 5 == len(result)


def test_arguments_that_the_text_does_not_tell_reach_the_function(tmp_path: Path, load: Load) -> None:
    methods = (
        'def getParameterInfo(self): return [dict(name="text_" + "prompt", dataType="string", value=""), '
        'dict(name="nms_overlap", dataType="numeric", value=float("0.1"))]'
    )
    features = '[{"geometry": {"x": 1, "y": 1}, "attributes": {"Class": self.scalars["text_prompt"]}}]'
    package = small(tmp_path, answering(features, methods=methods))
    (found,) = load(package, text_prompt="car").predict(block({}, 32))
    assert "car" == found.attributes[0][CLASS_TEXT]
    values = resolve_arguments(package.definition, {}).values
    assert 0.45 == values["nms_overlap"]
