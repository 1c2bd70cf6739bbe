"""Editors for one argument each: a number, a choice or a text, with "automatic" where there is no default."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qgis.PyQt.QtCore import QEvent, QObject, Qt, pyqtSignal
from qgis.PyQt.QtWidgets import QComboBox, QDoubleSpinBox, QLineEdit, QSpinBox, QWidget

from ..inference.errors import JobError
from ..inference.models.arguments import ArgumentSpec, convert
from ..processing_provider.text import to_plain, tr

_HIGHEST_INTEGER = 2**31 - 1
_HIGHEST_NUMBER = 1e9
_DECIMALS = 4


class Editor(QObject):
    """A widget that edits one value.

    Attributes:
        widget: The widget.

    Signals:
        edited: a person changed the value.
    """

    edited = pyqtSignal()

    def __init__(self, widget: QWidget) -> None:
        super().__init__(widget)
        self.widget = widget
        widget.setFocusPolicy(Qt.FocusPolicy.StrongFocus)
        widget.installEventFilter(self)

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:
        """Leave the mouse wheel to the window around: scrolling past must not change a value."""
        if event.type() == QEvent.Type.Wheel and not self.widget.hasFocus():
            event.ignore()
            return True
        return super().eventFilter(watched, event)

    def value(self) -> Any:
        """Give the value; None means automatic."""
        raise NotImplementedError

    def enter(self, value: Any) -> None:
        """Change the value as a person does."""
        raise NotImplementedError


class _NumberBox(QDoubleSpinBox):
    """A spin box that shows 0.5 as 0.5 and not as 0.5000."""

    def textFromValue(self, value: float) -> str:
        """Give the number without trailing zeros."""
        return self.locale().toString(round(value, _DECIMALS), "g", 12)


class NumberEditor(Editor):
    """A spin box. It takes numbers outside the argument's range, which the table then explains.

    Where there is no default, the value below the lowest one reads "automatic".
    """

    def __init__(self, spec: ArgumentSpec, value: Any) -> None:
        is_whole = spec.kind == "integer"
        self._box = box = QSpinBox() if is_whole else _NumberBox()
        highest = _HIGHEST_INTEGER if is_whole else _HIGHEST_NUMBER
        if not is_whole:
            box.setDecimals(_DECIMALS)
            box.setSingleStep(0.05)
        self._has_automatic = spec.default is None
        lowest = (spec.minimum or 0) - box.singleStep() if self._has_automatic else -highest
        box.setRange(int(lowest) if is_whole else lowest, highest)
        if self._has_automatic:
            box.setSpecialValueText(tr("automatic"))
        shown = spec.default if value is None else value
        box.setValue(box.minimum() if shown is None else shown)
        super().__init__(box)
        box.valueChanged.connect(lambda *_: self.edited.emit())

    def value(self) -> Any:
        """Give the number, or None for automatic."""
        if self._has_automatic and self._box.value() == self._box.minimum():
            return None
        return self._box.value() if isinstance(self._box, QSpinBox) else round(self._box.value(), _DECIMALS)

    def enter(self, value: Any) -> None:
        """Change the number."""
        self._box.setValue(value)


class ChoiceEditor(Editor):
    """A list of what is allowed, and automatic where there is no default."""

    def __init__(self, spec: ArgumentSpec, value: Any) -> None:
        self._box = box = QComboBox()
        if spec.default is None:
            box.addItem(tr("automatic"), None)
        if spec.kind == "boolean":
            box.addItem(tr("Yes"), True)
            box.addItem(tr("No"), False)
        for choice in spec.choices:
            box.addItem(to_plain(choice, 80), choice)
        box.setCurrentIndex(box.findData(spec.default if value is None else value))
        super().__init__(box)
        box.currentIndexChanged.connect(lambda *_: self.edited.emit())

    def value(self) -> Any:
        """Give the choice, or None for automatic."""
        return self._box.currentData()

    def enter(self, value: Any) -> None:
        """Change the choice."""
        self._box.setCurrentIndex(self._box.findData(value))


class TextEditor(Editor):
    """A line of text; also for a value that is not of the argument's type, so that it is seen and can be mended."""

    def __init__(self, spec: ArgumentSpec, value: Any) -> None:
        shown = spec.default if value is None else value
        self._line = line = QLineEdit("" if shown is None else str(shown))
        line.setPlaceholderText(tr("automatic"))
        super().__init__(line)
        line.textChanged.connect(lambda *_: self.edited.emit())

    def value(self) -> Any:
        """Give the text."""
        return self._line.text()

    def enter(self, value: Any) -> None:
        """Change the text."""
        self._line.setText(value)


def make_editor(spec: ArgumentSpec, value: Any) -> Editor:
    """Give an editor that shows a value; None shows the default."""
    if value is not None:
        value, is_of_kind = _in_own_type(spec, value)
        if not is_of_kind:
            return TextEditor(spec, value)
    if spec.kind in ("integer", "number"):
        return NumberEditor(spec, value)
    if spec.kind in ("boolean", "choice"):
        return ChoiceEditor(spec, value)
    return TextEditor(spec, value)


def _in_own_type(spec: ArgumentSpec, value: Any) -> tuple[Any, bool]:
    """Give the value in the argument's type, and whether that was possible; the range does not matter here."""
    unlimited = replace(spec, minimum=None, maximum=None)
    try:
        return convert(unlimited, value), True
    except JobError:
        return value, False
