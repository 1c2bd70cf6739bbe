"""Members of the operation's request become parameters of kestrel:detectobjects, or are told of or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import JobError
from kestrel.processing_provider.rest_request.draft import feature_class
from kestrel.processing_provider.rest_request.text import Request
from kestrel.processing_provider.rest_request.translate import Translation, known_members, translate

BASE = {"inputRaster": {"uri": "/data/ortho.tif"}, "model": {"uri": "/models/trees.dlpk"}}
SERVICE = "https://server/arcgis/rest/services/Ortho/ImageServer"
EMD = {"Framework": "TensorFlow", "ModelConfiguration": "ObjectDetectionAPI", "ModelFile": "/m/frozen.pb"}


def translated(members: dict[str, Any], folder: Path | None = None) -> Translation:
    return translate(Request({**BASE, **members}, folder))


def values(members: dict[str, Any]) -> dict[str, Any]:
    """What members add to the parameters, with JSON texts read."""
    plain = translated({}).values
    return {
        key: json.loads(value) if isinstance(value, str) and value.startswith("{") else value
        for key, value in translated(members).values.items()
        if plain.get(key) != value
    }


def refusal(members: dict[str, Any]) -> JobError:
    with pytest.raises(JobError) as caught:
        translated(members)
    return caught.value


@pytest.mark.parametrize(
    ("given_members", "expected"),
    [
        ({"inputRaster": "/other.tif"}, {"INPUT_SOURCE": {"uri": "/other.tif"}}),
        ({"inputRaster": {"uri": r"\\share\x.tif"}}, {"INPUT_SOURCE": {"uri": r"\\share\x.tif"}}),
        ({"model": '{"uri": "/other.emd"}'}, {"MODEL": "/other.emd"}),
        ({"model": "/other.emd"}, {"MODEL": "/other.emd"}),
        ({"model": {"itemId": "0a"}}, {"MODEL": {"itemId": "0a"}}),
        ({"model": {"url": "https://p/items/0a"}}, {"MODEL": {"url": "https://p/items/0a"}}),
        ({"model": "https://p/items/0a"}, {"MODEL": {"url": "https://p/items/0a"}}),
        ({"model": EMD}, {"MODEL": EMD}),
        ({"model": {**EMD, "uri": "x", "Description": ""}}, {"MODEL": {**EMD, "uri": "x", "Description": ""}}),
        ({"modelArguments": {"threshold": "0.5", "padding": 0}}, {"ARGUMENTS": {"threshold": "0.5", "padding": 0}}),
        ({"modelArguments": '{"a": 1}'}, {"ARGUMENTS": {"a": 1}}),
        (
            {"modelArguments": "text_prompt 'car, bus';batch_size 4"},
            {"ARGUMENTS": {"text_prompt": "car, bus", "batch_size": "4"}},
        ),
        ({"runNMS": True, "maxOverlapRatio": "0.1"}, {"RUN_NMS": True, "MAX_OVERLAP_RATIO": 0.1}),
        ({"runNMS": "false"}, {"RUN_NMS": False}),
        ({"confidenceScoreField": "Score"}, {"CONFIDENCE_SCORE_FIELD": "Score"}),
        ({"classValueField": "Kind"}, {"CLASS_VALUE_FIELD": "Kind"}),
        ({"processAllRasterItems": "true"}, {"PROCESSING_MODE": "PROCESS_ITEMS_SEPARATELY"}),
        ({"processAllRasterItems": False}, {"PROCESSING_MODE": "PROCESS_AS_MOSAICKED_IMAGE"}),
        ({"outputObjects": {"uri": "/out.gpkg"}}, {"OUTPUT": "/out.gpkg"}),
        (
            {"outputObjects": {"uri": r"C:\d\city.gdb\parks\trees"}},
            {"OUTPUT": "ogr:dbname='C:\\d\\city.gdb' table=\"trees\" (geom)"},
        ),
        ({"outputObjects": {"uri": "/d/a.gpkg/main.t"}}, {"OUTPUT": "ogr:dbname='/d/a.gpkg' table=\"t\" (geom)"}),
        ({"outputObjects": {"itemId": "0b"}}, {"OUTPUT_SERVICE": {"itemId": "0b"}}),
        ({"outputObjects": {"url": "https://s/FeatureServer"}}, {"OUTPUT_SERVICE": {"url": "https://s/FeatureServer"}}),
        (
            {"outputObjects": {"serviceProperties": {"name": "Cars"}, "itemProperties": {"folderId": "f"}}},
            {"OUTPUT_SERVICE": {"serviceProperties": {"name": "Cars"}, "itemProperties": {"folderId": "f"}}},
        ),
        ({"env:outSR": 4326}, {"OUTPUT_CRS": "EPSG:4326"}),
        ({"context": "", "modelArguments": {}, "runNMS": None}, {}),
        ({"f": "json", "returnMessages": "true"}, {}),
    ],
)
def test_a_member_becomes_the_parameter_that_means_the_same(
    given_members: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert values(given_members) == expected
    assert translated(given_members).warnings == ()


@pytest.mark.parametrize(
    ("given_input", "expected"),
    [
        ({"itemId": "0a"}, {"itemId": "0a"}),
        (SERVICE, {"url": SERVICE}),
        (json.dumps({"url": SERVICE}), {"url": SERVICE}),
        ({"itemId": "0a", "url": SERVICE}, {"itemId": "0a", "url": SERVICE}),
        ({"url": SERVICE, "renderingRule": {"rasterFunction": "NDVI"}},
         {"url": SERVICE, "renderingRule": {"rasterFunction": "NDVI"}}),
        ({"url": SERVICE, "mosaicRule": '{"where": "A = 1"}'}, {"url": SERVICE, "mosaicRule": {"where": "A = 1"}}),
        ({"uris": ["/a.tif", "/b.tif"]}, {"uris": ["/a.tif", "/b.tif"]}),
        ({"itemIds": '["0a", "0b"]'}, {"itemIds": ["0a", "0b"]}),
        ({"serviceProperties": {"name": "t", "serviceUrl": SERVICE}, "itemProperties": {"itemId": "0a"}},
         {"itemId": "0a", "url": SERVICE}),
        ({"tiled_url": SERVICE}, {"url": SERVICE}),
    ],
)  # fmt: skip
def test_the_input_goes_on_as_json(given_input: Any, expected: dict[str, Any]) -> None:
    assert json.loads(translated({"inputRaster": given_input}).values["INPUT_SOURCE"]) == expected


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({"extent": {"xmin": 0, "ymin": "1", "xmax": 2.5, "ymax": 3}}, {"EXTENT": "0.0,2.5,1.0,3.0"}),
        (
            {"extent": {"xmin": 0, "ymin": 1, "xmax": 2, "ymax": 3,
                        "spatialReference": {"wkid": 102100, "latestWkid": 3857}}},
            {"EXTENT": "0.0,2.0,1.0,3.0 [EPSG:3857]"},
        ),
        ({"extent": "MAXOF"}, {}),
        ({"cellSize": 0.5}, {"CELL_SIZE": 0.5}),
        ({"cellSize": "0.5"}, {"CELL_SIZE": 0.5}),
        ({"cellSize": {"x": 0.5, "y": 0.5}}, {"CELL_SIZE": 0.5}),
        ({"cellSize": {"url": "/fine.tif"}}, {"CELL_SIZE_LAYER": "/fine.tif"}),
        ({"cellSize": {"url": SERVICE}}, {"CELL_SIZE_LAYER": SERVICE}),
        ({"snapRaster": {"url": "/grid.tif"}}, {"SNAP_RASTER": "/grid.tif"}),
        ({"mask": {"url": "/parks.gpkg"}}, {"MASK": "/parks.gpkg"}),
        ({"mask": {"uri": "/city.gdb/parks"}}, {"MASK": "/city.gdb|layername=parks"}),
        (
            {"mask": {"url": "https://s/Parks/FeatureServer/0/"}},
            {"MASK": "arcgisfeatureserver://url='https://s/Parks/FeatureServer/0'"},
        ),
        ({"outSR": {"wkid": 102100}}, {"OUTPUT_CRS": "EPSG:3857"}),
        ({"outSR": {"wkid": 102003}}, {"OUTPUT_CRS": "ESRI:102003"}),
        ({"outSpatialReference": {"wkt": "GEOGCS[\n\"x\"]"}}, {"OUTPUT_CRS": 'WKT:GEOGCS[ "x"]'}),
        ({"resamplingMethod": "BILINEAR"}, {"RESAMPLING": "Bilinear"}),
        ({"parallelProcessingFactor": "80%"}, {"PARALLEL_PROCESSING_FACTOR": "80%"}),
        ({"parallelProcessingFactor": 4}, {"PARALLEL_PROCESSING_FACTOR": "4"}),
        ({"processorType": "cpu"}, {"PROCESSOR_TYPE": "CPU"}),
        ({"processorType": "GPU", "gpuId": "1"}, {"PROCESSOR_TYPE": "GPU", "GPU_ID": 1}),
        ({"processorType": "GPU", "gpuId": -2}, {"PROCESSOR_TYPE": "GPU"}),
        ({"where": "1=1", "cellAlignment": "DEFAULT"}, {}),
    ],
)  # fmt: skip
def test_a_member_of_the_context_becomes_the_parameter_that_means_the_same(
    context: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert values({"context": context}) == expected
    assert values({"context": json.dumps(context)}) == expected
    texts = {name: json.dumps(entry) if isinstance(entry, dict) else entry for name, entry in context.items()}
    assert values({"context": texts}) == expected
    assert translated({"context": context}).warnings == ()


def test_a_factor_of_the_cell_size_waits_for_the_raster() -> None:
    assert translated({"context": {"cellSize": {"factor": 2}}}).cell_factor == 2


def test_relative_paths_begin_at_the_folder_of_the_request() -> None:
    members = {"inputRaster": {"uri": "a.tif"}, "model": "m/t.dlpk", "outputObjects": {"uri": "../o.gpkg"}}
    found = translated({**members, "context": {"mask": {"uri": "k.gpkg"}}}, Path("/r")).values
    assert json.loads(found["INPUT_SOURCE"]) == {"uri": "/r/a.tif"}
    assert [found[key] for key in ("MODEL", "OUTPUT", "MASK")] == ["/r/m/t.dlpk", "/r/../o.gpkg", "/r/k.gpkg"]
    for kept in ("https://s/a.tif", r"C:\a.tif", r"\\share\a.tif", "/vsis3/b/a.tif", "s3://b/a.tif"):
        found = translated({"inputRaster": {"uri": kept}}, Path("/r")).values
        assert json.loads(found["INPUT_SOURCE"]) == {"uri": kept}


@pytest.mark.parametrize(
    ("given_members", "named"),
    [
        ({"inputraster": 1}, "inputraster"),
        ({"processingMode": "PROCESS_ITEMS_SEPARATELY"}, "processingMode"),
        ({"context": {"cellsize": 2}}, "context.cellsize"),
        ({"context": {"scratchWorkspace": "x"}}, "context.scratchWorkspace"),
        ({"context": {"extent": {"xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1, "zmin": 0}}}, "context.extent.zmin"),
        ({"context": {"extent": "MINOF"}}, "context.extent"),
        ({"context": {"cellSize": "MinOf"}}, "context.cellSize"),
        ({"context": {"cellAlignment": "ALIGN_WITH_INPUT_EXTENT"}}, "context.cellAlignment"),
        ({"context": {"outSR": {"wkid": 4326, "vcsWkid": 5703}}}, "context.outSR.vcsWkid"),
        ({"context": {"processSR": {"wkid": 4326}}}, "context.processSR"),
        ({"context": {"geographicTransformations": 1173}}, "context.geographicTransformations"),
        ({"context": {"noData": "NONE"}}, "context.noData"),
        ({"context": {"recycleProcessingWorkers": 2}}, "context.recycleProcessingWorkers"),
        ({"context": {"retryOnFailures": True}}, "context.retryOnFailures"),
        ({"context": {"compression": "LZ77"}}, "context.compression"),
        ({"context": {"pyramid": True}}, "context.pyramid"),
        ({"context": {"logging": True}}, "context.logging"),
        ({"context": {"outSR": 4326}, "env:outSR": 3857}, "env:outSR"),
        ({"maxOverlapRatio": 0.2}, "maxOverlapRatio"),
        ({"f": "html"}, "f"),
        ({"model": {"itemId": "0a", "uri": "/x"}}, "model.uri"),
        ({"outputObjects": {"url": "https://s/FeatureServer", "uri": "/x"}}, "outputObjects.uri"),
        ({"inputRaster": {"url": SERVICE, "tiled_url": SERVICE}}, "inputRaster.tiled_url"),
        ({"inputRaster": {"url": SERVICE, "colour": 1}}, "inputRaster.colour"),
    ],
)
def test_what_has_no_effect_is_named(given_members: dict[str, Any], named: str) -> None:
    assert any(f"'{named}' has no effect" in warning for warning in translated(given_members).warnings)


def test_a_misspelled_member_is_told_with_what_may_be_meant() -> None:
    assert "perhaps 'cellSize' was meant" in translated({"context": {"cellsize": 2}}).warnings[0]


def test_a_cell_size_beside_another_reference_is_told_to_be_in_the_rasters_units() -> None:
    assert "units of the input raster" in translated({"context": {"outSR": 4326, "cellSize": 1}}).warnings[0]


REFUSED = [
    ({"inputRaster": None}, "inputRaster", "is missing"),
    ({"model": "", "MODEL": "/m"}, "model", "not MODEL"),
    ({"inputRaster": {"renderingRule": {"rasterFunction": "x"}}}, "inputRaster", "names no raster"),
    ({"inputRaster": 12}, "inputRaster", "is not a JSON object"),
    ({"inputRaster": {"uri": "/rasterStores/a/b"}}, "inputRaster.uri", "only that server can look up"),
    ({"inputRaster": {"uri": "/fileShares/a/b"}}, "inputRaster.uri", "as this computer sees it"),
    ({"inputRaster": {"uris": ["/a.tif", "/cloudStores/a/b"]}}, "inputRaster.uris", "data store"),
    ({"inputRaster": {"uri": 7}}, "inputRaster.uri", "is not a text"),
    ({"inputRaster": {"uri": "a\x00b"}}, "inputRaster.uri", "control characters"),
    ({"inputRaster": {"function": {"name": "Clip"}}}, "inputRaster.function", "rendering template"),
    ({"inputRaster": {"url": "https://s/Photos/FeatureServer/0"}}, "inputRaster", "Save the attachments"),
    ({"inputRaster": {"folderId": "0a"}}, "inputRaster.folderId", "itemIds"),
    ({"inputRaster": {"serviceProperties": {"name": "x", "serviceUrl": ""}}}, "inputRaster", "names no raster"),
    ({"inputRaster": '{"uri": "/a.tif"'}, "inputRaster", "is not valid JSON"),
    ({"model": {"uri": "/fileShares/a/b.dlpk"}}, "model.uri", "only that server"),
    ({"outputObjects": {"uri": "/fileShares/a/b"}}, "outputObjects.uri", "only that server"),
    ({"outputObjects": {"name": "x"}}, "outputObjects", "names no output"),
    ({"modelArguments": [1]}, "modelArguments", "is not a JSON object"),
    ({"modelArguments": {"threshold": {"a": 1}}}, "modelArguments.threshold", "no text and no number"),
    ({"modelArguments": "threshold"}, "modelArguments", "has no value"),
    ({"runNMS": "maybe"}, "runNMS", "neither true nor false"),
    ({"runNMS": 1}, "runNMS", "neither true nor false"),
    ({"maxOverlapRatio": 1.5}, "maxOverlapRatio", "outside 0 to 1"),
    ({"maxOverlapRatio": "much"}, "maxOverlapRatio", "is not a number"),
    ({"outputClassifiedRaster": {"itemId": "0"}}, "outputClassifiedRaster", "Leave it out"),
    ({"context": 5}, "context", "is not a JSON object"),
    ({"context": {"extent": {"xmin": 0, "ymin": 0, "xmax": 1}}}, "context.extent", "lacks ymax"),
    ({"context": {"extent": {"xmin": 2, "ymin": 0, "xmax": 1, "ymax": 1}}}, "context.extent", "is empty"),
    ({"context": {"extent": {"xmin": "NaN", "ymin": 0, "xmax": 1, "ymax": 1}}}, "context.extent.xmin", "not a number"),
    ({"context": {"extent": "everything"}}, "context.extent", "is not a JSON object"),
    ({"context": {"cellSize": {"x": 1, "y": 2}}}, "context.cellSize", "square ones"),
    ({"context": {"cellSize": 0}}, "context.cellSize", "not above 0"),
    ({"context": {"cellSize": {"factor": "x"}}}, "context.cellSize.factor", "is not a number"),
    ({"context": {"mask": {"url": "https://s/Parks/ImageServer"}}}, "context.mask.url", "layer of polygons"),
    ({"context": {"mask": {"url": "https://s/Parks/FeatureServer"}}}, "context.mask.url", "FeatureServer/0"),
    ({"context": {"mask": {"layer": 1}}}, "context.mask", "names no layer"),
    ({"context": {"outSR": {"wkid": -1}}}, "context.outSR.wkid", "no number of a coordinate"),
    ({"context": {"outSR": {"vcsWkid": 1}}}, "context.outSR", "names no coordinate reference system"),
    ({"context": {"resamplingMethod": "MAJORITY"}}, "context.resamplingMethod", "NEAREST, BILINEAR or CUBIC"),
    ({"context": {"parallelProcessingFactor": "many"}}, "context.parallelProcessingFactor", "neither a count"),
    ({"context": {"processorType": "TPU"}}, "context.processorType", "neither CPU nor GPU"),
    ({"context": {"gpuId": 0.5}}, "context.gpuId", "whole number"),
    ({"context": {"where": "Year = 2020"}}, "context.where", "mosaicRule"),
]


@pytest.mark.parametrize(("given_members", "named", "said"), REFUSED)
def test_what_cannot_be_done_is_refused_by_name(given_members: dict[str, Any], named: str, said: str) -> None:
    error = refusal(given_members)
    assert f"'{named}'" in error.message
    assert said in str(error)
    assert error.context["member"] == named


FLAT = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=15)
ANY = st.recursive(
    FLAT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([name.rpartition(".")[2] for name in known_members()] + ["xmin", "wkid", "x", "zzz"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(known_members()[:16]), ANY, max_size=6))
def test_whatever_the_members_hold_they_are_translated_or_refused(members: dict[str, Any]) -> None:
    try:
        translated(members)
    except JobError as error:
        assert error.message.endswith(".")


@settings(deadline=None)
@given(st.floats(-1e7, 1e7), st.floats(-1e7, 1e7), st.floats(1e-3, 1e6), st.floats(1e-3, 1e6), st.booleans())
def test_an_extent_keeps_its_corners_to_the_last_digit(
    x: float, y: float, width: float, height: float, text: bool
) -> None:
    extent: Any = {"xmin": x, "ymin": y, "xmax": x + width, "ymax": y + height}
    found = translated({"context": {"extent": json.dumps(extent) if text else extent}}).values["EXTENT"]
    assert [float(part) for part in found.split(",")] == [x, x + width, y, y + height]


def test_a_path_without_an_end_is_given_up_at_once() -> None:
    """Looking for a database in it would take hours."""
    endless = "a.gdb/" * 200_000 + "'"
    assert feature_class(endless) == (endless, "")
