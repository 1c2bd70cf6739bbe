"""The layer looks like its model, and tells where its objects come from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from qgis.core import (
    Qgis,
    QgsCoordinateReferenceSystem,
    QgsExpression,
    QgsExpressionContext,
    QgsExpressionContextUtils,
    QgsMemoryProviderUtils,
    QgsProcessingContext,
    QgsProject,
    QgsRectangle,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QCoreApplication

from kestrel.inference.job import DetectionJob
from kestrel.inference.models.definition import ModelClass
from kestrel.processing_provider import layer_style
from kestrel.processing_provider.feature_sink import FieldNames, RunFacts, features, output_fields
from kestrel.processing_provider.layer_style import (
    LayerStyle,
    RunRecord,
    coarsest_label_scale,
    layer_name,
    renderer,
    style_on_load,
)
from kestrel.processing_provider.raster_source import SourceRaster
from kestrel.tests.qgis.examples import Listener, context, definition, three_objects

CRS = QgsCoordinateReferenceSystem("EPSG:32633")
RASTER = SourceRaster("photo", "/x/photo.tif?sig=secret", CRS, QgsRectangle(0, 0, 10, 10), 0.1, ("", "", ""), False)
JOB = DetectionJob("job-1", (RASTER.item,), "/x/palms.dlpk", "abc", {"threshold": 0.4})
RECORD = RunRecord(JOB, definition(), RASTER, FieldNames(), Counter(Palm=2, House=1))


def layer_of(record: RunRecord) -> QgsVectorLayer:
    layer = QgsMemoryProviderUtils.createMemoryLayer("x", output_fields(record.fields), Qgis.WkbType.Polygon, CRS)
    run = RunFacts(record.definition, "job-1", record.fields)
    layer.dataProvider().addFeatures(list(features(three_objects(), run)))
    return layer


def styled(record: RunRecord = RECORD, **options: Any) -> QgsVectorLayer:
    layer = layer_of(record)
    LayerStyle(record, **options).postProcessLayer(layer, context(), Listener())
    return layer


def test_the_layer_is_named_after_model_and_raster() -> None:
    assert styled().name() == "Palms (photo)"


def test_a_name_that_someone_chose_stays() -> None:
    assert styled(has_default_name=False).name() == "x"


def test_each_class_has_the_models_colour_a_strong_outline_and_a_translucent_fill() -> None:
    layer, found = styled(), {}
    for category in layer.renderer().categories():
        fill, outline = category.symbol().symbolLayers()
        found[category.value()] = (fill.fillColor().getRgb(), outline.strokeColor().getRgb())
    assert found == {
        "Palm": ((10, 200, 30, 30), (10, 200, 30, 255)),
        "House": ((200, 20, 20, 30), (200, 20, 20, 255)),
    }


def test_the_legend_leaves_out_classes_that_were_not_found() -> None:
    layer = styled(replace(RECORD, class_counts=Counter(House=1)))
    assert [category.value() for category in layer.renderer().categories()] == ["House"]


def test_classes_that_only_a_program_knows_are_in_the_legend_too() -> None:
    layer = styled(replace(RECORD, class_counts=Counter({"House": 1, "Cactus": 2})))
    assert [category.value() for category in layer.renderer().categories()] == ["House", "Cactus"]


@pytest.mark.parametrize(("n_foreign", "others"), [(40, []), (41, ["other"])])
def test_classes_for_which_the_legend_has_no_room_share_an_entry(n_foreign: int, others: list[str]) -> None:
    layer = styled(replace(RECORD, class_counts=Counter({f"c{number}": 1 for number in range(n_foreign)})))
    assert others == [category.label() for category in layer.renderer().categories()][40:]


def test_many_classes_of_the_model_leave_nothing_over() -> None:
    model = replace(definition(), classes=tuple(ModelClass(i, f"c{i}", (1, 2, 3)) for i in range(80)))
    layer = styled(replace(RECORD, definition=model, class_counts=Counter({f"c{number}": 1 for number in range(80)})))
    assert [f"c{number}" for number in range(80)] == [c.label() for c in layer.renderer().categories()]


def test_the_legend_shows_all_classes_when_nothing_was_found() -> None:
    layer = styled(replace(RECORD, class_counts=Counter()))
    assert [category.value() for category in layer.renderer().categories()] == ["Palm", "House"]


@pytest.mark.parametrize("names", [FieldNames(), FieldNames('my "score"', "Kind of thing")])
def test_labels_say_class_and_confidence(names: FieldNames) -> None:
    layer = styled(replace(RECORD, fields=names))
    expression = QgsExpression(layer.labeling().settings().fieldName)
    scope = QgsExpressionContext(QgsExpressionContextUtils.globalProjectLayerScopes(layer))
    scope.setFeature(next(layer.getFeatures()))
    assert expression.evaluate(scope) == "Palm 97%"


@pytest.mark.parametrize(
    ("cell_size", "crs", "expected"),
    [(0.1, "EPSG:32633", 1400), (10, "EPSG:32633", 142900), (0.0001, "EPSG:4326", 159000)],
)
def test_labels_appear_where_objects_are_large_enough(cell_size: float, crs: str, expected: float) -> None:
    assert coarsest_label_scale(cell_size, QgsCoordinateReferenceSystem(crs)) == expected


@pytest.mark.parametrize(
    ("geometry", "kind"),
    [
        (Qgis.WkbType.Point, Qgis.SymbolType.Marker),
        (Qgis.WkbType.MultiLineString, Qgis.SymbolType.Line),
        (Qgis.WkbType.MultiPolygon, Qgis.SymbolType.Fill),
    ],
)
def test_each_geometry_is_drawn_in_its_own_way_with_the_models_colours(
    geometry: Qgis.WkbType, kind: Qgis.SymbolType
) -> None:
    layer = QgsMemoryProviderUtils.createMemoryLayer("x", output_fields(FieldNames()), geometry, CRS)
    LayerStyle(RECORD).postProcessLayer(layer, context(), Listener())
    categories = layer.renderer().categories()  # they own their symbols
    top = categories[0].symbol().symbolLayers()[-1]
    color = top.strokeColor() if kind == Qgis.SymbolType.Fill else top.color()
    assert (categories[0].symbol().type(), color.getRgb()) == (kind, (10, 200, 30, 255))
    assert layer.labelsEnabled()


def test_custom_properties_tell_programs_where_the_objects_come_from() -> None:
    layer = styled()
    found = {
        name: layer.customProperty(f"kestrel/{name}")
        for name in ("model", "model_version", "model_sha256", "arguments")
    }
    assert found == {
        "model": "Palms", "model_version": "2", "model_sha256": "abc", "arguments": '{"threshold": 0.4}'
    }  # fmt: skip
    assert layer.customProperty("kestrel/job_id") == "job-1"


def test_a_signature_in_a_remote_rasters_address_is_not_kept() -> None:
    layer = styled()
    assert layer.customProperty("kestrel/raster") == "/x/photo.tif"
    assert "secret" not in layer.htmlMetadata()


def test_names_from_the_model_are_never_drawn_as_html() -> None:
    evil = "<img src=file:///x>"
    classes = (ModelClass(4, evil, (1, 2, 3)), ModelClass(7, "House", (1, 2, 3)))
    model = replace(definition(), name=evil, version=evil, license=evil, classes=classes)
    record = replace(RECORD, definition=model, raster=replace(RASTER, name=evil))
    layer = styled(record)
    texts = [layer.name(), layer.metadata().abstract(), *layer.metadata().history()]
    texts += [category.label() for category in layer.renderer().categories()]
    assert [text for text in texts if "<" in text] == []


def test_a_layer_that_is_not_loaded_is_left_alone() -> None:
    style_on_load(context(), "nowhere", RECORD, "Detected objects")


def test_a_style_is_let_go_once_it_has_been_used() -> None:
    where, others = context(), list(layer_style._alive)
    where.addLayerToLoadOnCompletion("x", QgsProcessingContext.LayerDetails("", QgsProject.instance(), "OUTPUT"))
    style_on_load(where, "x", RECORD, "Detected objects")
    (style,) = [style for style in layer_style._alive if style not in others]
    where.layerToLoadOnCompletionDetails("x").postProcessor().postProcessLayer(layer_of(RECORD), where, Listener())
    assert layer_style._alive == [*others, style]
    QCoreApplication.processEvents()
    assert layer_style._alive == others


def test_a_class_name_is_no_expression_in_the_legend() -> None:
    drawn = renderer([ModelClass(1, "[% env('HOME') %]", (1, 2, 3))], "Class")
    (category,) = drawn.categories()
    assert "[%" not in category.label()
    assert "[% env('HOME') %]" == category.value()


def test_a_model_name_is_no_expression_in_the_legend() -> None:
    model = replace(definition(), name="[% env('HOME') %]")
    assert "[%" not in layer_name(replace(RECORD, definition=model))
