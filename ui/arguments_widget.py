"""The table of model arguments: names, values with a proper editor each, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qgis.PyQt.QtCore import QSize, Qt, pyqtSignal
from qgis.PyQt.QtWidgets import (
    QAbstractItemView,
    QDialog,
    QDialogButtonBox,
    QHBoxLayout,
    QHeaderView,
    QInputDialog,
    QLabel,
    QLineEdit,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from ..inference.errors import InferenceError, JobError
from ..inference.models.arguments import (
    COMMON_ARGUMENTS,
    RESULT_ARGUMENTS,
    ArgumentSpec,
    argument_specs,
    convert,
    parse_arguments,
    resolve_arguments,
)
from ..inference.models.definition import ModelDefinition
from ..inference.models.package import open_package
from ..processing_provider.text import to_plain, to_ui, tr
from .argument_editors import Editor, make_editor
from .model_widget import ERROR_COLOR, browse_for_model

_NAME, _VALUE, _RESET = range(3)
_ODD = (TypeError, ValueError, AttributeError)
"""What a model's own arguments may raise, since they are compared and counted with as they come."""


class ArgumentsTable(QWidget):
    """Edits the arguments of one model.

    What was given, by a person or by `set_value`, is kept apart from the model's defaults: `value` holds only that, and
    it outlives a change of the model for the names that the new model knows.

    Signals:
        changed: something was given or taken back.
    """

    changed = pyqtSignal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._definition: ModelDefinition | None = None
        self._specs = _specs_without_model()
        self._given: dict[str, Any] = {}
        self._unreadable = ""
        self._editors: dict[str, Editor] = {}
        self._table = _FittingTable(0, 3)
        self._note = QLabel()
        self._note.setWordWrap(True)
        self._note.setTextFormat(Qt.TextFormat.PlainText)
        self._table.currentCellChanged.connect(lambda *_: self._show_note())
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addWidget(self._table)
        column.addWidget(self._note)
        self._fill()

    def value(self) -> str:
        """Give what was given, as JSON text; empty when nothing was."""
        if self._unreadable:
            return self._unreadable
        return json.dumps(self._given, ensure_ascii=False) if self._given else ""

    def set_value(self, value: Any) -> None:
        """Show arguments in any spelling that `parse_arguments` reads; a text that it cannot read is kept as it is."""
        try:
            self._given, self._unreadable = parse_arguments(value), ""
        except JobError:
            self._given, self._unreadable = {}, str(value)
        self._fill()

    def set_model(self, definition: ModelDefinition | None) -> None:
        """Show the arguments of a model; what was given stays where the new model knows the name."""
        before = {spec.name for spec in self._specs}
        self._definition = definition
        self._specs = _specs_without_model() if definition is None else _specs_of(definition)
        gone = before - {spec.name for spec in self._specs}
        self._given = {name: value for name, value in self._given.items() if name not in gone}
        self._fill()

    def add_argument(self, name: str) -> None:
        """Add a row for an argument that the table does not know."""
        if name and name not in self._editors:
            self._given[name] = ""
            self._fill()
            self.changed.emit()

    def editor(self, name: str) -> Editor:
        """Give the editor in the row of an argument."""
        return self._editors[name]

    def names(self) -> list[str]:
        """Give the arguments in the order of the rows."""
        return list(self._editors)

    def problem(self) -> tuple[str, str]:
        """Give the name of the argument that is wrong and the reason; both empty where all is well."""
        try:
            if self._unreadable:
                parse_arguments(self._unreadable)
            for spec in self._specs:
                if self._given.get(spec.name, "") not in ("", None):
                    convert(spec, self._given[spec.name])
            if self._definition is not None:
                resolve_arguments(self._definition, self._given)
        except JobError as error:
            return str(error.context.get("argument", "")), to_plain(error)
        except _ODD as error:
            return "", to_plain(
                tr("The arguments in the model's own definition cannot be used: {error}").format(error=error)
            )
        return "", ""

    def _rows(self) -> list[ArgumentSpec]:
        known = {spec.name for spec in self._specs}
        is_program = self._definition is not None and self._definition.kind == "python"
        meaning = (
            tr("Handed on to the model's own program.")
            if is_program
            else tr("Not an argument of this model: without effect.")
        )
        unknown = [ArgumentSpec(name, "text", None, meaning) for name in self._given if name not in known]
        return [*self._specs, *unknown]

    def _fill(self) -> None:
        rows = self._rows()
        self._table.clear_rows(len(rows))
        self._editors = {}
        for row, spec in enumerate(rows):
            editor = make_editor(spec, self._given.get(spec.name))
            editor.edited.connect(lambda name=spec.name: self._edited(name))
            self._editors[spec.name] = editor
            self._table.setItem(row, _NAME, _name_item(spec))
            self._table.setCellWidget(row, _VALUE, editor.widget)
            self._table.setCellWidget(row, _RESET, self._reset_button(spec.name))
        self._table.fit()
        self._show_state()

    def _reset_button(self, name: str) -> QToolButton:
        button = QToolButton()
        button.setAutoRaise(True)
        button.setToolTip(tr("Back to the default"))
        button.clicked.connect(lambda *_: self._reset(name))
        return button

    def _edited(self, name: str) -> None:
        self._unreadable = ""
        self._given[name] = self._editors[name].value()
        if self._given[name] is None:
            del self._given[name]
        self._show_state()
        self.changed.emit()

    def _reset(self, name: str) -> None:
        self._given.pop(name, None)
        self._fill()
        self.changed.emit()

    def _show_state(self) -> None:
        """Mark what was given in bold and what is wrong in red."""
        wrong, _ = self.problem()
        for row, name in enumerate(self._editors):
            item = self._table.item(row, _NAME)
            font = item.font()
            font.setBold(name in self._given)
            item.setFont(font)
            # Not hidden: a table shows its cells' widgets again whenever it lays them out.
            self._table.cellWidget(row, _RESET).setText("\u21ba" if name in self._given else "")
            self._editors[name].widget.setStyleSheet(f"color: {ERROR_COLOR}" if name == wrong else "")
        self._show_note()

    def _show_note(self) -> None:
        """Below the table: what is wrong, or what the argument of the current row means."""
        _, reason = self.problem()
        rows, current = self._rows(), self._table.currentRow()
        spec = rows[current] if 0 <= current < len(rows) else None
        self._note.setStyleSheet(f"color: {ERROR_COLOR}" if reason else "")
        self._note.setText(reason or (_explained(spec) if spec else ""))
        self._note.setVisible(bool(self._note.text()))


def _specs_of(definition: ModelDefinition) -> tuple[ArgumentSpec, ...]:
    try:
        return argument_specs(definition)
    except (JobError, *_ODD):
        # The package's own defaults are damaged; the model itself says so when it is chosen.
        return _specs_without_model()


def _specs_without_model() -> tuple[ArgumentSpec, ...]:
    """Give the common arguments, whose defaults are not known as long as the model is not."""
    return tuple(replace(spec, default=None) for spec in (*COMMON_ARGUMENTS, *RESULT_ARGUMENTS))


def _explained(spec: ArgumentSpec) -> str:
    return to_plain(f"{_title(spec)}: {spec.help} ({spec.expected()})")


def _title(spec: ArgumentSpec) -> str:
    """Give how people call an argument, and the name that is stored."""
    is_labelled = spec.label and spec.label.lower() != spec.name.lower()
    return f"{spec.label} ({spec.name})" if is_labelled else spec.name


def _name_item(spec: ArgumentSpec) -> QTableWidgetItem:
    item = QTableWidgetItem(to_plain(_title(spec), 80))
    item.setFlags(Qt.ItemFlag.ItemIsEnabled | Qt.ItemFlag.ItemIsSelectable)
    item.setToolTip(to_ui(f"{spec.help} ({spec.expected()})", 600))
    return item


class _FittingTable(QTableWidget):
    """A table that is as high as its rows."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(rows, columns)
        self.setHorizontalHeaderLabels([tr("Argument"), tr("Value"), ""])
        self.verticalHeader().hide()
        self.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        header = self.horizontalHeader()
        header.setSectionResizeMode(_NAME, QHeaderView.ResizeMode.ResizeToContents)
        header.setSectionResizeMode(_VALUE, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(_RESET, QHeaderView.ResizeMode.Fixed)
        header.resizeSection(_RESET, 28)

    def clear_rows(self, count: int) -> None:
        """Empty all rows; Qt deletes the widgets in them only later, and would show them in a corner until then."""
        for row in range(self.rowCount()):
            for column in (_VALUE, _RESET):
                self.cellWidget(row, column).hide()
                self.removeCellWidget(row, column)
        self.setRowCount(count)

    def fit(self) -> None:
        """Take the height of the rows."""
        self.resizeRowsToContents()
        self.setFixedHeight(self.sizeHint().height())

    def sizeHint(self) -> QSize:
        """Give the size of header and rows."""
        rows = sum(self.rowHeight(row) for row in range(self.rowCount()))
        height = rows + self.horizontalHeader().sizeHint().height() + 2 * self.frameWidth()
        return QSize(super().sizeHint().width(), height)


class ModelerArguments(QWidget):
    """The table where no model is at hand, in the model designer: with buttons to load one and to add rows.

    Signals:
        changed: something was given or taken back.
    """

    changed = pyqtSignal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.table = ArgumentsTable()
        self.table.changed.connect(lambda: self.changed.emit())
        load, add = QPushButton(tr("Load from model file\u2026")), QPushButton(tr("Add argument\u2026"))
        load.setToolTip(tr("Show the arguments and defaults of a model; the step itself is not changed"))
        load.clicked.connect(lambda *_: self._load())
        add.clicked.connect(lambda *_: self._add())
        self._message = QLabel()
        self._message.setTextFormat(Qt.TextFormat.PlainText)
        self._message.setWordWrap(True)
        row = QHBoxLayout()
        row.addWidget(load)
        row.addWidget(add)
        row.addStretch()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(self.table)
        column.addLayout(row)
        column.addWidget(self._message)

    def value(self) -> str:
        """Give what was given, as JSON text."""
        return self.table.value()

    def set_value(self, value: Any) -> None:
        """Show arguments."""
        self.table.set_value(value)

    def set_model(self, definition: ModelDefinition | None) -> None:
        """Show the arguments of a model."""
        self.table.set_model(definition)

    def load(self, path: str) -> None:
        """Show the arguments of the model in a file."""
        try:
            definition = open_package(path).definition
        except InferenceError as error:
            self._message.setText(to_plain(error))
            return
        self._message.setText(tr("Defaults of {model}").format(model=to_plain(definition.name, 80)))
        self.table.set_model(definition)

    def _load(self) -> None:
        path = browse_for_model(self)
        if path:
            self.load(path)

    def _add(self) -> None:
        name, is_accepted = QInputDialog.getText(self, tr("Add argument"), tr("Name of the argument"))
        if is_accepted:
            self.table.add_argument(name.strip())


class CompactArguments(QWidget):
    """Arguments in one line, as JSON text, with a button that opens the table: for the rows of a batch.

    Signals:
        changed: the text is another one.
    """

    changed = pyqtSignal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._definition: ModelDefinition | None = None
        self._line = QLineEdit()
        self._line.setPlaceholderText(tr("the model's own"))
        self._line.textChanged.connect(lambda *_: self._changed())
        button = QToolButton()
        button.setText("\u2026")
        button.setToolTip(tr("Edit as a table"))
        button.clicked.connect(lambda *_: self._open())
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(2)
        row.addWidget(self._line, 1)
        row.addWidget(button)

    def value(self) -> str:
        """Give the text."""
        return self._line.text().strip()

    def set_value(self, value: Any) -> None:
        """Show arguments in any spelling."""
        self._line.setText(json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value or ""))

    def set_model(self, definition: ModelDefinition | None) -> None:
        """Check the text against a model."""
        self._definition = definition
        self._check()

    def make_table(self) -> ArgumentsTable:
        """Give a table of the model and the text."""
        table = ArgumentsTable()
        table.set_model(self._definition)
        table.set_value(self.value())
        return table

    def _changed(self) -> None:
        self._check()
        self.changed.emit()

    def _check(self) -> None:
        _, reason = self.make_table().problem()
        self._line.setStyleSheet(f"color: {ERROR_COLOR}" if reason else "")
        self._line.setToolTip(reason)

    def _open(self) -> None:
        dialog = QDialog(self)
        dialog.setWindowTitle(tr("Model arguments"))
        table = self.make_table()
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel)
        buttons.accepted.connect(dialog.accept)
        buttons.rejected.connect(dialog.reject)
        column = QVBoxLayout(dialog)
        column.addWidget(table)
        column.addWidget(buttons)
        dialog.resize(520, dialog.sizeHint().height())
        if dialog.exec() == QDialog.DialogCode.Accepted:
            self._line.setText(table.value())
