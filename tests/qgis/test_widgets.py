"""The model chooser and the table of arguments, in the panels of Processing's windows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsProcessingContext, QgsProcessingModelAlgorithm, QgsSettings
from qgis.gui import QgsGui, QgsProcessingGui
from qgis.PyQt.QtCore import QCoreApplication, QEvent
from qgis.PyQt.QtWidgets import QTableWidget

from kestrel.inference.models.package import open_package
from kestrel.tests.qgis.examples import algorithm, definition, write_model
from kestrel.ui.arguments_widget import ArgumentsTable, CompactArguments, ModelerArguments
from kestrel.ui.factories import widget_factories
from kestrel.ui.model_widget import ModelChooser, describe, recent_models, remember


@pytest.fixture(scope="module", autouse=True)
def factories() -> Iterator[None]:
    """Kestrel's widget factories, registered as the plugin does it."""
    made = widget_factories()
    for factory in made:
        QgsGui.processingGuiRegistry().addParameterWidgetFactory(factory)
    yield
    for factory in made:
        QgsGui.processingGuiRegistry().removeParameterWidgetFactory(factory)


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A model whose own threshold is 0.3."""
    return write_model(tmp_path, Kestrel={"arguments": {"threshold": 0.3, "padding": 16}})


@pytest.fixture
def table(model: str) -> ArgumentsTable:
    """The table of that model."""
    value = ArgumentsTable()
    value.set_model(open_package(model).definition)
    return value


def test_the_table_shows_the_models_own_values_and_gives_none_of_them(table: ArgumentsTable) -> None:
    assert {name: table.editor(name).value() for name in table.names()} == {
        "threshold": 0.3,
        "nms_overlap": 0.45,
        "padding": 16,
        "tile_size": 256,
        "batch_size": None,
        "exclude_pad_detections": True,
        "test_time_augmentation": False,
    }
    assert table.value() == ""


def test_what_is_typed_is_given_and_nothing_else(table: ArgumentsTable) -> None:
    table.editor("threshold").enter(0.6)
    table.editor("batch_size").enter(8)
    table.editor("test_time_augmentation").enter(True)
    assert json.loads(table.value()) == {"threshold": 0.6, "batch_size": 8, "test_time_augmentation": True}


def test_a_value_typed_back_to_automatic_is_given_no_more(table: ArgumentsTable) -> None:
    table.editor("batch_size").enter(8)
    table.editor("batch_size").enter(0)
    assert (table.editor("batch_size").value(), table.value()) == (None, "")


def test_a_value_that_was_typed_is_given_even_if_it_is_the_default(table: ArgumentsTable) -> None:
    table.editor("threshold").enter(0.6)
    table.editor("threshold").enter(0.3)
    assert json.loads(table.value()) == {"threshold": 0.3}


@pytest.mark.parametrize(
    ("value", "name", "reason"),
    [
        ('{"threshold": 0.6}', "", ""),
        ('{"threshold": 1.5}', "threshold", "expected a number from 0 to 1"),
        ('{"threshold": "high"}', "threshold", "'high'"),
        ("padding 200", "padding", "must be below 128"),
        ('{"padding": ', "", "not valid JSON"),
    ],
)
def test_what_is_wrong_is_told_with_its_row(table: ArgumentsTable, value: str, name: str, reason: str) -> None:
    table.set_value(value)
    found_name, found_reason = table.problem()
    assert found_name == name
    assert reason in found_reason


@pytest.mark.parametrize("odd", [["threshold"], {"tile_size": [1]}, {"threshold": {}}])
def test_odd_arguments_in_a_package_are_told_and_never_raised(odd: Any) -> None:
    table = ArgumentsTable()
    table.set_model(replace(definition(), arguments=odd))
    table.set_value('{"padding": 16}')
    assert table.problem()[1] != ""


def test_a_text_that_cannot_be_read_is_kept_for_the_run_to_refuse(table: ArgumentsTable) -> None:
    table.set_value('{"padding": ')
    assert table.value() == '{"padding": '


def test_an_argument_that_the_model_does_not_know_keeps_its_row(table: ArgumentsTable) -> None:
    table.set_value('{"tta_scales": "1,2"}')
    assert table.names()[-1] == "tta_scales"
    assert json.loads(table.value()) == {"tta_scales": "1,2"}


def test_what_was_typed_outlives_a_change_of_the_model(table: ArgumentsTable, tmp_path: Path) -> None:
    table.editor("threshold").enter(0.6)
    table.set_model(open_package(write_model(tmp_path, "other.emd", ImageHeight=512, ImageWidth=512)).definition)
    assert json.loads(table.value()) == {"threshold": 0.6}
    assert (table.editor("threshold").value(), table.editor("tile_size").value()) == (0.6, 512)


def test_without_a_model_the_common_arguments_are_there_and_automatic() -> None:
    table = ArgumentsTable()
    assert {table.editor(name).value() for name in table.names()} == {None}
    table.editor("threshold").enter(0.25)
    assert table.value() == '{"threshold": 0.25}'


def test_no_editor_is_left_over_when_the_rows_change(table: ArgumentsTable) -> None:
    for _ in range(3):
        table.set_value('{"threshold": 0.5}')
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    grid = table.findChild(QTableWidget)
    editors = {id(grid.cellWidget(row, 1)) for row in range(grid.rowCount())}
    assert len(editors) == grid.rowCount() == 7


def test_the_chooser_says_what_a_model_is(model: str) -> None:
    chooser = ModelChooser()
    chooser.set_value(model)
    assert chooser.info() == "Palms 2 · 2 classes (Palm, House) · tiles of 256 pixels"


def test_the_chooser_tells_the_cell_size_with_its_unit(tmp_path: Path) -> None:
    sizes = {
        "MinCellSize": {"x": 0.1, "y": 0.1, "spatialReference": {"wkid": 32633}},
        "MaxCellSize": {"x": 0.2, "y": 0.2, "spatialReference": {"wkid": 32633}},
    }
    text = describe(open_package(write_model(tmp_path, **sizes)).definition)
    assert text.endswith(" · cell size 0.1 – 0.2 m")


def test_the_chooser_says_why_a_model_cannot_be_used() -> None:
    chooser = ModelChooser()
    chooser.set_value("/nowhere/<b>.dlpk")
    assert chooser.info().startswith("The model file '/nowhere/‹b>.dlpk' does not exist.")
    assert chooser.definition is None


def test_models_used_lately_are_remembered_newest_first_and_once(tmp_path: Path) -> None:
    QgsSettings().remove("kestrel/recent_models")
    one, two = write_model(tmp_path, "one.emd"), write_model(tmp_path, "two.emd")
    for path in (one, two, one):
        remember(path)
    assert recent_models() == [one, two]
    Path(two).unlink()
    assert recent_models() == [one]


class Window:
    """The wrappers of one window, made as the dialog, a row of the batch or the model designer makes them."""

    def __init__(self, kind: Any) -> None:
        self._owner = algorithm()
        registry = QgsGui.processingGuiRegistry()
        self.wrappers = {
            key: registry.createParameterWidgetWrapper(self._owner.parameterDefinition(key), kind)
            for key in ("MODEL", "ARGUMENTS")
        }
        self.context = QgsProcessingContext()
        self.widgets = {key: wrapper.createWrappedWidget(self.context) for key, wrapper in self.wrappers.items()}
        if kind != QgsProcessingGui.WidgetType.Modeler:
            for wrapper in self.wrappers.values():
                wrapper.postInitialize(list(self.wrappers.values()))

    def set(self, key: str, value: Any) -> None:
        self.wrappers[key].setParameterValue(value, self.context)

    def values(self) -> dict[str, Any]:
        return {key: wrapper.parameterValue() for key, wrapper in self.wrappers.items()}

    def close(self) -> None:
        for widget in self.widgets.values():
            widget.deleteLater()
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


DIALOG, BATCH = QgsProcessingGui.WidgetType.Standard, QgsProcessingGui.WidgetType.Batch
MODELER = QgsProcessingGui.WidgetType.Modeler


@pytest.mark.parametrize("order", [("MODEL", "ARGUMENTS"), ("ARGUMENTS", "MODEL")])
@pytest.mark.parametrize("kind", [DIALOG, BATCH, MODELER], ids=["dialog", "batch", "modeler"])
def test_values_survive_whichever_is_set_first(model: str, kind: Any, order: tuple[str, str]) -> None:
    values = {"MODEL": model, "ARGUMENTS": '{"threshold": 0.6}'}
    window = Window(kind)
    for key in order:
        window.set(key, values[key])
    assert window.values() == values


def test_a_mapping_as_value_becomes_its_text(model: str) -> None:
    window = Window(DIALOG)
    window.set("ARGUMENTS", {"threshold": 0.6})
    assert window.values()["ARGUMENTS"] == '{"threshold": 0.6}'


def test_the_table_follows_the_model_chosen_beside_it(model: str) -> None:
    window = Window(DIALOG)
    window.set("MODEL", model)
    table = window.widgets["ARGUMENTS"].findChild(ArgumentsTable)
    assert table.editor("threshold").value() == 0.3


def test_a_row_of_a_batch_checks_its_arguments_against_its_model(model: str) -> None:
    window = Window(BATCH)
    window.set("MODEL", model)
    window.set("ARGUMENTS", "padding 200")
    compact = window.widgets["ARGUMENTS"].findChild(CompactArguments)
    assert "must be below 128" in compact.make_table().problem()[1]


def test_the_model_designer_shows_the_defaults_of_a_model_on_request(model: str) -> None:
    window = Window(MODELER)
    editor = window.widgets["ARGUMENTS"].findChild(ModelerArguments)
    editor.load(model)
    assert editor.table.editor("threshold").value() == 0.3
    assert window.values()["ARGUMENTS"] == ""


def test_the_model_designer_takes_arguments_that_no_table_knows(model: str) -> None:
    window = Window(MODELER)
    editor = window.widgets["ARGUMENTS"].findChild(ModelerArguments)
    editor.table.add_argument("tta_scales")
    editor.table.editor("tta_scales").enter("1,2")
    assert json.loads(window.values()["ARGUMENTS"]) == {"tta_scales": "1,2"}


def test_windows_open_and_close_many_times_without_an_error(model: str) -> None:
    found = []
    for number in range(25):
        window = Window((DIALOG, BATCH, MODELER)[number % 3])
        window.set("ARGUMENTS", '{"threshold": 0.6}')
        window.set("MODEL", model)
        found.append(window.values() == {"MODEL": model, "ARGUMENTS": '{"threshold": 0.6}'})
        window.close()
    assert found == [True] * 25


def test_the_designers_own_widget_offers_all_sources_of_values(model: str) -> None:
    registry, owner = QgsGui.processingGuiRegistry(), algorithm()
    designed = QgsProcessingModelAlgorithm()
    widget = registry.createModelerParameterWidget(
        designed, "child", owner.parameterDefinition("ARGUMENTS"), QgsProcessingContext()
    )
    widget.setWidgetValue(_static('{"threshold": 0.6}'))
    assert widget.value().staticValue() == '{"threshold": 0.6}'


def _static(value: str) -> Any:
    from qgis.core import QgsProcessingModelChildParameterSource

    return QgsProcessingModelChildParameterSource.fromStaticValue(value)
