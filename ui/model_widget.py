"""ModelChooser: a line for the model's path, a list of known models, and what the chosen one is."""

from __future__ import annotations

from pathlib import Path

from qgis.core import QgsRasterLayer, QgsSettings
from qgis.PyQt.QtCore import Qt, QTimer, pyqtSignal
from qgis.PyQt.QtWidgets import QFileDialog, QHBoxLayout, QLabel, QLineEdit, QMenu, QToolButton, QVBoxLayout, QWidget

from ..inference.errors import InferenceError
from ..inference.models.definition import CellSizeRange, ModelDefinition
from ..inference.models.package import ModelPackage, open_package
from ..processing_provider.code_consent import Consent
from ..processing_provider.description_html import unit_name
from ..processing_provider.fit_check import Unreadable, fit_of, look_at
from ..processing_provider.raster_source import SourceRaster
from ..processing_provider.text import to_plain, tr
from .model_info import ConsentNotice, FitNotice, ModelInfoPanel, state_of
from .plan_panel import PlanPanel

SHIPPED = Path(__file__).parent.parent / "resources" / "models"
RECENT_SETTING = "kestrel/recent_models"
FOLDER_SETTING = "kestrel/model_folder"

_MOST_RECENT = 8
_TYPING_PAUSE = 300
"""Milliseconds without a key before the path is looked at."""
_SHOWN_CLASSES = 5
ERROR_COLOR = "#b00020"


class ModelChooser(QWidget):
    """Lets a person choose a model package.

    Signals:
        changed: the value is another one.
        cell_size_wanted: the cell size that fits the model, in the raster's units, was asked for.

    Args:
        is_compact: One line without the description below, for table cells.
    """

    changed = pyqtSignal()
    cell_size_wanted = pyqtSignal(float)

    def __init__(self, parent: QWidget | None = None, is_compact: bool = False) -> None:
        super().__init__(parent)
        self._typing = QTimer(self)
        self._typing.setSingleShot(True)
        self._typing.setInterval(_TYPING_PAUSE)
        self._typing.timeout.connect(lambda *_: self._look())
        self._line = QLineEdit()
        self._line.setPlaceholderText(tr("A .dlpk package, an .emd or .json definition, or a model file"))
        self._line.textChanged.connect(lambda *_: self._typing.start())
        self._info = QLabel()
        self._info.setTextFormat(Qt.TextFormat.PlainText)
        self._info.setWordWrap(True)
        self._is_compact = is_compact
        self._info.setVisible(not is_compact)
        self.consent = ConsentNotice()
        self.consent.decided.connect(lambda: self._show_package())
        self.fit = FitNotice()
        self.fit.cell_size_wanted.connect(lambda size: self.cell_size_wanted.emit(size))
        self.panel = ModelInfoPanel()
        self.plan = PlanPanel()
        self._allow = QToolButton()
        self._allow.setText("!")
        self._allow.setToolTip(tr("This model holds a program that has not been allowed yet."))
        self._allow.clicked.connect(lambda *_: self.consent.pressed.emit())
        self._allow.setVisible(False)
        self._raster: SourceRaster | Unreadable | None = None
        self._cell_size: float | None = None
        self._seen = ""
        self.package: ModelPackage | None = None
        self.definition: ModelDefinition | None = None
        """What the chosen model is; None where there is no usable one."""
        self._lay_out()

    def _lay_out(self) -> None:
        known, browse = QToolButton(), QToolButton()
        known.setText("\u25be")
        known.setToolTip(tr("Models that come with Kestrel, and those used lately"))
        known.clicked.connect(lambda *_: self._show_known(known))
        browse.setText("\u2026")
        browse.setToolTip(tr("Choose a file"))
        browse.clicked.connect(lambda *_: self._browse())
        row = QHBoxLayout()
        row.setContentsMargins(0, 0, 0, 0)
        row.setSpacing(2)
        row.addWidget(self._line, 1)
        row.addWidget(self._allow)
        row.addWidget(known)
        row.addWidget(browse)
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        column.addLayout(row)
        column.addWidget(self._info)
        below = QWidget(self)
        parts = QVBoxLayout(below)
        parts.setContentsMargins(0, 0, 0, 0)
        parts.setSpacing(2)
        for part in (self.consent, self.fit, self.plan, self.panel):
            parts.addWidget(part)
        # Not without a parent in a table's cell: a part that is shown would be a window of its own there.
        below.setVisible(not self._is_compact)
        column.addWidget(below)
        self.setFocusProxy(self._line)

    def value(self) -> str:
        """Give the path, or the definition's text."""
        return self._line.text().strip()

    def set_value(self, value: str) -> None:
        """Show a path or a definition's text."""
        self._line.setText(value)
        self._typing.stop()
        self._look()

    def info(self) -> str:
        """Give the text that describes the model, or says why it cannot be used."""
        return self._info.text()

    def _look(self) -> None:
        value = self.value()
        if value == self._seen:
            return
        self._seen = value
        self.package, text, is_error = _looked_at(value)
        self.definition = self.package.definition if self.package is not None else None
        self._info.setText(text)
        self._info.setStyleSheet(f"color: {ERROR_COLOR}" if is_error else "")
        self._line.setStyleSheet(f"color: {ERROR_COLOR}" if is_error else "")
        self._line.setToolTip(text)
        if self.definition is not None and not value.startswith("{"):
            remember(value)
        self._show_package()
        self._show_fit()
        self.changed.emit()

    @property
    def raster(self) -> SourceRaster | Unreadable | None:
        """Give the raster that the model is compared with."""
        return self._raster

    def set_raster(self, layer: QgsRasterLayer | None, cell_size: float | None = None) -> None:
        """Compare the model with a raster.

        Args:
            layer: The raster; None: there is none.
            cell_size: The cell size that the model shall see, in the raster's units; None: the raster's own.
        """
        is_there = layer is not None and layer.isValid()
        self.compare_with(look_at(layer) if is_there else None, cell_size)

    def compare_with(self, raster: SourceRaster | Unreadable | None, cell_size: float | None) -> None:
        """Compare the model with a raster that was looked at."""
        self._raster, self._cell_size = raster, cell_size
        self._show_fit()

    def _show_package(self) -> None:
        self.consent.show_package(self.package, self.value())
        self._allow.setVisible(self._is_compact and state_of(self.package) in (Consent.MISSING, Consent.UNKNOWN))
        if not self._is_compact:
            self.panel.show_package(self.package)

    def _show_fit(self) -> None:
        report = None
        if self.definition is not None and self._raster is not None and not self._is_compact:
            report = fit_of(self.definition, self._raster, self._cell_size)
        self.fit.show_report(report)

    def _show_known(self, button: QToolButton) -> None:
        menu = QMenu(self)
        menu.setToolTipsVisible(True)
        for title, paths in ((tr("Comes with Kestrel"), shipped_models()), (tr("Used lately"), recent_models())):
            menu.addSection(title)
            for path in paths:
                action = menu.addAction(_menu_text(path))
                action.setToolTip(to_plain(path))
                action.triggered.connect(lambda _=False, path=path: self.set_value(path))
        menu.exec(button.mapToGlobal(button.rect().bottomLeft()))

    def _browse(self) -> None:
        path = browse_for_model(self)
        if path:
            self.set_value(path)


def browse_for_model(parent: QWidget) -> str:
    """Let a person choose a model file; empty when they do not."""
    settings = QgsSettings()
    path, _ = QFileDialog.getOpenFileName(
        parent,
        tr("Choose a model"),
        str(settings.value(FOLDER_SETTING, "") or SHIPPED),
        tr("Models (*.dlpk *.zip *.emd *.json *.onnx *.pt *.pth *.pt2 *.torchscript *.safetensors);;All files (*)"),
    )
    if path:
        settings.setValue(FOLDER_SETTING, str(Path(path).parent))
    return path


def shipped_models() -> list[str]:
    """Give the packages that come with the plugin."""
    return sorted(str(path) for path in SHIPPED.glob("*.dlpk"))


def recent_models() -> list[str]:
    """Give the packages that were chosen lately and are still there, the latest first."""
    stored = QgsSettings().value(RECENT_SETTING, []) or []
    paths = [stored] if isinstance(stored, str) else list(stored)
    return [path for path in paths if Path(path).is_file()]


def remember(path: str) -> None:
    """Put a package at the head of those chosen lately."""
    path = str(Path(path).expanduser().absolute())
    if path in shipped_models():
        return
    others = [recent for recent in recent_models() if recent != path]
    QgsSettings().setValue(RECENT_SETTING, [path, *others][:_MOST_RECENT])


def _menu_text(path: str) -> str:
    # In a menu, an ampersand marks the key to press.
    return to_plain(Path(path).name).replace("&", "&&")


def _looked_at(value: str) -> tuple[ModelPackage | None, str, bool]:
    """Open a model; give its package, the text about it, and whether that text is an error."""
    if not value:
        return None, "", False
    try:
        package = open_package(value)
    except InferenceError as error:
        return None, to_plain(error), True
    return package, describe(package.definition), False


def describe(definition: ModelDefinition) -> str:
    """Say in one line what a model is: name, version, classes, tile, cell size."""
    names = [item.name for item in definition.classes]
    shown = ", ".join(names[:_SHOWN_CLASSES]) + (", \u2026" if len(names) > _SHOWN_CLASSES else "")
    label = tr("class {names}") if len(names) == 1 else tr("{count} classes ({names})")
    parts = [
        f"{definition.name} {definition.version}".strip(),
        label.format(count=len(names), names=shown),
        tr("tiles of {size} pixels").format(size=definition.tile.size),
    ]
    if definition.cell_size is not None:
        parts.append(_cell_size_text(definition.cell_size))
    return to_plain(" \u00b7 ".join(parts))


def _cell_size_text(cell_size: CellSizeRange) -> str:
    low, high = f"{cell_size.minimum:g}", f"{cell_size.maximum:g}"
    size = low if low == high else f"{low} \u2013 {high}"
    return tr("cell size {size} {unit}").format(size=size, unit=unit_name(cell_size))
