"""The model chooser and the table of arguments, in the panels of Processing's windows."""

from __future__ import annotations

import gc
import json
import os
import weakref
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsProcessingContext, QgsProcessingModelAlgorithm, QgsProject, QgsRasterLayer, QgsSettings
from qgis.gui import QgsGui, QgsProcessingGui
from qgis.PyQt.QtCore import QCoreApplication, QEvent, QUrl
from qgis.PyQt.QtWidgets import QDialog, QDialogButtonBox, QTableWidget

from kestrel.inference.models.package import ModelPackage, open_package
from kestrel.inference.models.program import program_sha256
from kestrel.processing_provider import code_consent
from kestrel.processing_provider.code_consent import trusted_programs
from kestrel.tests.qgis.examples import (
    algorithm,
    context,
    definition,
    write_mask_rcnn,
    write_model,
    write_program,
    write_raster,
)
from kestrel.ui import factories as factories_module
from kestrel.ui.arguments_widget import ArgumentsTable, CompactArguments, ModelerArguments
from kestrel.ui.consent_dialog import ConsentDialog, program_text
from kestrel.ui.model_widget import ModelChooser, describe, recent_models, remember

pytestmark = pytest.mark.usefixtures("widgets")


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
        "merge_method": "nms",
        "merge_metric": "iou",
        "class_agnostic": False,
        "head": "automatic",
        "input_order": "automatic",
        "scale": "automatic",
        "stretch": "model",
        "shape": "model",
        "simplify": 0.0,
        "square_corners": False,
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
    assert len(editors) == grid.rowCount() == len(table.names())


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

    def __init__(self, kind: Any, keys: tuple[str, ...] = ("MODEL", "ARGUMENTS")) -> None:
        self._owner = algorithm()
        registry = QgsGui.processingGuiRegistry()
        self.wrappers = {
            key: registry.createParameterWidgetWrapper(self._owner.parameterDefinition(key), kind) for key in keys
        }
        self.context = context()
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


@pytest.mark.parametrize("kind", [DIALOG, BATCH, MODELER], ids=["dialog", "batch", "modeler"])
def test_what_a_container_asks_in_python_lives_as_long_as_it(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second wrapper pushes the first one aside, but C++ keeps its address: were it freed, QGIS would crash."""
    made, plain = [], factories_module._container

    def container(child: Any) -> Any:
        first = plain(child)
        made.append(weakref.ref(first))
        return first

    monkeypatch.setattr(factories_module, "_container", container)
    window = Window(kind)
    gc.collect()
    assert [True, True] == [first() is not None for first in made]
    assert all(first() is not widget for first, widget in zip(made, window.widgets.values()))


def test_what_the_factory_keeps_does_not_keep_the_other_wrappers_of_a_window() -> None:
    """The model's wrapper lives as long as QGIS: what it held would be freed in an order that crashes."""
    window = Window(DIALOG, ("INPUT", "MODEL", "ARGUMENTS", "CELL_SIZE", "EXTENT"))
    wrappers = [weakref.ref(wrapper) for wrapper in window.wrappers.values()]
    window.close()
    del window
    gc.collect()
    assert [reference() for reference in wrappers] == [None] * 5


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


def rows_of(model: str) -> dict[str, str]:
    """Give the first column's text by argument."""
    table = ArgumentsTable()
    table.set_model(open_package(model).definition)
    inner = table.findChild(QTableWidget)
    return {name: inner.item(row, 0).text() for row, name in enumerate(table.names())}


def test_a_programs_own_arguments_are_in_the_table_before_anybody_allowed_it(tmp_path: Path) -> None:
    rows = rows_of(write_program(tmp_path / "finder.dlpk"))
    assert rows == {
        "score_threshold": "Confidence Score Threshold (score_threshold)",
        "mode": "mode",
        "shape": "Shape of objects (shape)",
        "simplify": "Simplify outlines (simplify)",
        "square_corners": "Square corners (square_corners)",
    }


def test_a_choice_is_made_from_a_list_and_stored_as_its_text(tmp_path: Path) -> None:
    table = ArgumentsTable()
    table.set_model(open_package(write_program(tmp_path / "finder.dlpk")).definition)
    box = table.editor("mode").widget
    assert [box.itemText(row) for row in range(box.count())] == ["fast", "exact"]
    assert (table.editor("mode").value(), table.value()) == ("fast", "")
    table.editor("mode").enter("exact")
    assert json.loads(table.value()) == {"mode": "exact"}
    table.set_value("mode FAST")
    assert table.editor("mode").value() == "fast"
    table.set_value("mode odd")
    assert "expected one of fast, exact" in table.problem()[1]


def test_arguments_that_only_the_program_knows_are_handed_on(tmp_path: Path) -> None:
    table = ArgumentsTable()
    table.set_model(open_package(write_program(tmp_path / "finder.dlpk")).definition)
    table.set_value('{"hidden": "7"}')
    inner, row = table.findChild(QTableWidget), list(table.names()).index("hidden")
    assert inner.item(row, 0).toolTip().startswith("Handed on to the model&#x27;s own program.")
    assert json.loads(table.value()) == {"hidden": "7"}


def test_a_family_of_arcgis_shows_its_own_arguments(tmp_path: Path) -> None:
    assert {"return_bboxes", "merge_policy", "tile_size"} <= set(rows_of(write_mask_rcnn(tmp_path / "roofs.dlpk")))


def test_what_people_call_an_argument_stands_before_its_name(model: str) -> None:
    rows = rows_of(model)
    assert rows["exclude_pad_detections"] == "Filter outer padding detections (exclude_pad_detections)"
    assert rows["threshold"] == "threshold"


@pytest.fixture
def nothing_allowed() -> Iterator[None]:
    """No program is allowed before and after a test."""
    code_consent._this_time.clear()
    QgsSettings().remove("kestrel/trusted_code")
    yield
    code_consent._this_time.clear()
    QgsSettings().remove("kestrel/trusted_code")


@pytest.fixture
def chooser(tmp_path: Path, nothing_allowed: None) -> ModelChooser:
    """A chooser of a model that is a program."""
    value = ModelChooser()
    value.set_value(write_program(tmp_path / "finder.dlpk"))
    return value


def test_a_program_that_waits_for_consent_has_a_line_with_a_button(chooser: ModelChooser) -> None:
    assert not chooser.consent.isHidden()
    assert chooser.consent.label.text() == "This model holds a program that has not been allowed yet."
    assert chooser.consent.button.text() == "Look and allow\u2026"
    assert "waits for your consent" in chooser.panel.browser.toPlainText()


def test_the_dialog_shows_files_and_text_and_cancel_is_the_default(chooser: ModelChooser) -> None:
    dialog = chooser.consent.make_dialog()
    names = [dialog.files.topLevelItem(row).text(0) for row in range(dialog.files.topLevelItemCount())]
    assert names == ["Finder.emd", "Finder.py", "helpers/geometry.py", "weights.pth"]
    assert "def getParameterInfo" in dialog.preview.toPlainText()
    assert dialog.preview.isReadOnly()
    cancel = dialog.buttons.button(QDialogButtonBox.StandardButton.Cancel)
    assert (cancel.isDefault(), dialog.once.isDefault(), dialog.always.isDefault()) == (True, False, False)
    dialog.reject()
    assert trusted_programs() == []


@pytest.mark.parametrize(("button", "n_kept"), [("once", 0), ("always", 1)])
def test_allowing_hides_the_line_and_keeps_only_what_was_always_allowed(
    chooser: ModelChooser, button: str, n_kept: int
) -> None:
    dialog = chooser.consent.make_dialog()
    getattr(dialog, button).click()
    assert dialog.result() == QDialog.DialogCode.Accepted
    chooser.consent.show_package(chooser.package, "")
    assert chooser.consent.isHidden()
    assert len(trusted_programs()) == n_kept


def test_nothing_can_be_allowed_where_the_administrator_forbids_programs(
    chooser: ModelChooser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "global.ini").write_text("[kestrel]\ncode_policy=deny\n")
    monkeypatch.setenv("QGIS_GLOBAL_SETTINGS_FILE", str(tmp_path / "global.ini"))
    dialog = chooser.consent.make_dialog()
    assert (dialog.once.isEnabled(), dialog.always.isEnabled()) == (False, False)
    chooser.consent.show_package(chooser.package, "")
    assert (chooser.consent.isHidden(), chooser.consent.button.isHidden()) == (False, True)


def test_what_is_shown_is_what_would_run(tmp_path: Path) -> None:
    source = "a = 1 # \u202e\u2066 comment\r\nb = 2 # hidden\rimport os\n"
    (tmp_path / "Finder.py").write_bytes(source.encode())
    text = program_text(tmp_path / "Finder.py")
    assert text == "a = 1 # \\u{202e}\\u{2066} comment\nb = 2 # hidden\nimport os\n"


@pytest.mark.parametrize("encoding", ["utf_7", "unicode_escape", "no-such"])
def test_a_text_in_an_encoding_that_hides_code_is_shown_as_bytes(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "Finder.py").write_bytes(f"# -*- coding: {encoding} -*-\n# Licence+AAo-evil()\n".encode())
    text = program_text(tmp_path / "Finder.py")
    assert "code can look like a comment: do not allow it unless you know why" in text
    assert "+AAo-evil()" in text


@pytest.mark.parametrize("start", ["\r", "#\r", "\x0c\r"])
def test_an_encoding_named_behind_a_lone_carriage_return_is_found(tmp_path: Path, start: str) -> None:
    (tmp_path / "Finder.py").write_bytes(f"{start}# coding: utf_7\r# Licence+AAo-evil()\n".encode())
    assert "do not allow it" in program_text(tmp_path / "Finder.py")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "iso-8859-15", "cp1252"])
def test_a_text_in_a_usual_encoding_is_shown_as_text(tmp_path: Path, encoding: str) -> None:
    text = f"# coding: {encoding}\nname = 'H\u00f6he'\n" if encoding != "ascii" else "# coding: ascii\n"
    (tmp_path / "Finder.py").write_bytes(text.encode(encoding))
    assert program_text(tmp_path / "Finder.py") == text


@pytest.mark.parametrize(
    "code", [0x115F, 0x1160, 0x3164, 0xFFA0, 0x34F, 0xFE00, 0xFE0F, 0xE0100, 0xE01EF, 0x2065, 0xE0080, 0x200B, 0x2800]
)
def test_letters_that_look_like_nothing_are_written_out(tmp_path: Path, code: int) -> None:
    (tmp_path / "Finder.py").write_text(f"a{chr(code)} = 1", encoding="utf-8")
    assert f"a\\u{{{code:x}}} = 1" == program_text(tmp_path / "Finder.py")


def test_a_line_of_the_preview_never_goes_on_out_of_sight(tmp_path: Path, nothing_allowed: None) -> None:
    chooser = ModelChooser()
    chooser.set_value(write_program(tmp_path / "finder.dlpk", "a = 1" + " " * 5000 + "; evil()\n"))
    dialog = chooser.consent.make_dialog()
    dialog.show()
    assert dialog.preview.horizontalScrollBar().maximum() == 0
    dialog.reject()


def test_scripts_of_a_compiled_network_that_are_not_shown_are_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        for number in range(25):
            archive.writestr(f"net/code/part{number}.py", f"def f{number}(): pass\n")
    text = program_text(tmp_path / "net.pt")
    assert "Of 25 scripts in it 20 are shown." in text
    assert "def f19()" in text


def test_a_compiled_network_with_an_absurd_directory_is_not_opened(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/code/net.py", b"PK\x01\x02" * 20_001)
    text = program_text(tmp_path / "net.pt")
    assert text == "A compiled network (TorchScript) with too many parts to be shown: do not allow it."


def test_what_is_shown_and_allowed_comes_from_one_private_copy(tmp_path: Path, nothing_allowed: None) -> None:
    path = Path(write_program(tmp_path / "finder.dlpk", "first()\n"))
    package = open_package(str(path))
    stale, status = code_consent.sha256_of(package), path.stat()
    write_program(path, "other()\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    package = open_package(str(path))
    assert code_consent.sha256_of(package) == stale  # size and time are the same
    dialog = ConsentDialog(package, str(path))
    write_program(path, "third()\n")
    assert dialog.preview.toPlainText() == "other()\n"
    dialog.always.click()
    (kept,) = trusted_programs()
    write_program(path, "other()\n")
    assert stale != kept.sha256 == program_sha256(open_package(str(path)))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything above a kilobyte is large; collects what is hashed nevertheless."""
    names: list[str] = []

    def hash_and_tell(package: ModelPackage) -> str:
        names.append(package.definition.name)
        return program_sha256(package)

    monkeypatch.setattr(code_consent, "MAX_BYTES_AT_ONCE", 1000)
    monkeypatch.setattr(code_consent, "program_sha256", hash_and_tell)
    return names


@pytest.mark.parametrize("is_loose", [False, True])
def test_a_large_program_is_hashed_when_somebody_looks_and_not_before(
    tmp_path: Path, nothing_allowed: None, hashed: list[str], is_loose: bool
) -> None:
    path = write_program(tmp_path / "finder.dlpk")
    if is_loose:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "loose")
        path = str(tmp_path / "loose" / "Finder.emd")
    chooser = ModelChooser()
    chooser.set_value(path)
    assert hashed == []
    assert chooser.consent.label.text() == "This model holds a large program, not looked at yet."
    assert chooser.consent.button.text() == "Look and allow\u2026"
    assert "not looked at yet" in chooser.panel.browser.toPlainText()
    chooser.consent.make_dialog().reject()
    chooser._show_package()
    assert chooser.consent.label.text() == "This model holds a program that has not been allowed yet."
    chooser.consent.make_dialog().once.click()
    chooser._show_package()
    assert chooser.consent.isHidden()
    assert "allowed to run" in chooser.panel.browser.toPlainText()
    assert len(hashed) == 2


def test_a_large_program_waits_for_a_look_in_a_table_too(
    tmp_path: Path, nothing_allowed: None, hashed: list[str]
) -> None:
    compact = ModelChooser(is_compact=True)
    compact.set_value(write_program(tmp_path / "finder.dlpk"))
    assert (compact._allow.isHidden(), hashed) == (False, [])


def test_a_program_that_cannot_be_read_is_told_when_somebody_wants_to_look(
    chooser: ModelChooser, tmp_path: Path
) -> None:
    path = tmp_path / "finder.dlpk"
    data = path.read_bytes()
    path.write_bytes(data[:40] + bytes(len(data) - 40))
    assert chooser.consent.make_dialog() is None
    assert chooser.consent.label.text().startswith("The program cannot be shown: ")
    assert trusted_programs() == []


def test_the_private_copy_is_gone_when_the_dialog_closes(chooser: ModelChooser) -> None:
    dialog = chooser.consent.make_dialog()
    folder = Path(dialog._private.name)
    assert (folder / "program" / "Finder.py").is_file()
    assert folder.stat().st_mode & 0o077 == 0
    dialog.reject()
    assert not folder.exists()


def test_a_long_program_is_cut_and_the_cut_is_told(tmp_path: Path) -> None:
    (tmp_path / "Finder.py").write_bytes(b"# x\n" * 100_000)
    text = program_text(tmp_path / "Finder.py")
    assert len(text) < 300_000
    assert text.endswith("The file goes on; what follows is not shown here.")


def test_in_a_table_cell_the_same_is_one_small_button(tmp_path: Path, nothing_allowed: None) -> None:
    compact = ModelChooser(is_compact=True)
    compact.set_value(write_program(tmp_path / "finder.dlpk"))
    compact.show()
    assert not compact._allow.isHidden()
    assert not compact.consent.isVisible()
    assert compact.sizeHint().height() < 50


def test_the_panel_tells_the_essentials(tmp_path: Path) -> None:
    chooser = ModelChooser()
    chooser.set_value(write_mask_rcnn(tmp_path / "roofs.dlpk"))
    text = chooser.panel.browser.toPlainText()
    expected = [
        "MaskRCNN, resnet50", "Roof\xa0(1)", "1 Red, 2 Green, 3 Blue", "400 pixels, padding 100",
        "0.1 \u2013 0.15 m", "outlines", "average precision score: Roof 0.83, Solar panel 0.71, Pool 0.9",
        "Never run: ArcGISInstanceDetector.py",
    ]  # fmt: skip
    assert [words for words in expected if words.replace("\xa0", " ") not in text.replace("\xa0", " ")] == []


EVIL = "<img src='file:///etc/hostname'><a href='file:///x'>x</a>"


def test_the_panel_loads_nothing_whatever_a_package_says(tmp_path: Path) -> None:
    classes = [{"Value": 1, "Name": EVIL}]
    model = write_mask_rcnn(tmp_path / "roofs.dlpk", Classes=classes, ImageryType=EVIL, License=EVIL, Bands=[EVIL] * 3)
    panel = ModelChooser()
    panel.set_value(model)
    browser = panel.panel.browser
    assert "<img" not in browser.toHtml().replace("&lt;img", "")
    assert "href" not in browser.toHtml().replace("&lt;a href", "")
    assert browser.loadResource(2, QUrl("file:///etc/hostname")) is None
    assert (browser.openLinks(), browser.openExternalLinks()) == (False, False)


def raster_layer(path: Path, **options: Any) -> QgsRasterLayer:
    layer = QgsRasterLayer(write_raster(path, **options), "photo", "gdal")
    QgsProject.instance().addMapLayer(layer)
    return layer


def test_a_raster_that_is_too_coarse_is_told_with_a_button_that_sets_the_cell_size(tmp_path: Path) -> None:
    chooser, asked = ModelChooser(), []
    chooser.cell_size_wanted.connect(asked.append)
    chooser.set_value(write_mask_rcnn(tmp_path / "roofs.dlpk"))
    layer = raster_layer(tmp_path / "coarse.tif", values=(0, 255))
    chooser.set_raster(layer, None)
    assert not chooser.fit.isHidden()
    assert "the model was trained on 0.1 to 0.15 m" in chooser.fit.label.text()
    chooser.fit.button.click()
    assert asked == [pytest.approx(0.122)]
    chooser.set_raster(layer, asked[0])
    assert chooser.fit.isHidden()


def test_in_the_dialog_the_button_fills_in_the_cell_size(tmp_path: Path) -> None:
    layer = raster_layer(tmp_path / "coarse.tif", values=(0, 255))
    window = Window(DIALOG, ("INPUT", "MODEL", "CELL_SIZE"))
    window.set("INPUT", layer.id())
    window.set("MODEL", write_mask_rcnn(tmp_path / "roofs.dlpk"))
    chooser = window.widgets["MODEL"].findChild(ModelChooser)
    assert not chooser.fit.isHidden()
    chooser.fit.button.click()
    assert window.values()["CELL_SIZE"] == pytest.approx(0.122)
    assert chooser.fit.isHidden()
    window.set("CELL_SIZE", 2)
    assert "The pixels are 2 m wide" in chooser.fit.label.text()
