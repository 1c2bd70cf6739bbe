"""What the chosen model is, below its name: a panel, and the two lines that may ask for something."""

from __future__ import annotations

from typing import Any

from qgis.core import QgsSettings
from qgis.gui import QgsCollapsibleGroupBoxBasic
from qgis.PyQt.QtCore import Qt, QUrl, pyqtSignal
from qgis.PyQt.QtWidgets import (
    QApplication,
    QFrame,
    QHBoxLayout,
    QLabel,
    QPushButton,
    QTextBrowser,
    QVBoxLayout,
    QWidget,
)

from ..inference.errors import InferenceError
from ..inference.models.description import describe_code, describe_definition
from ..inference.models.package import ModelPackage
from ..processing_provider.code_consent import Consent, consent_to, known_sha256, needs_consent
from ..processing_provider.description_html import essentials
from ..processing_provider.fit_check import FitReport
from ..processing_provider.text import to_plain, tr
from .consent_dialog import ConsentDialog

COLLAPSED_SETTING = "kestrel/model_info_collapsed"
WARNING_COLOR = "#8a4b00"
_LEAST_HEIGHT = 40
_MOST_HEIGHT = 260


class InfoBrowser(QTextBrowser):
    """Shows HTML and nothing else: no link leads anywhere, and nothing is loaded."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setOpenLinks(False)
        self.setOpenExternalLinks(False)
        self.setFrameShape(QFrame.Shape.NoFrame)
        self.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
        self.viewport().setAutoFillBackground(False)
        self.document().setDocumentMargin(2)

    def loadResource(self, kind: int, name: QUrl) -> Any:
        """Load nothing, whatever a text names."""
        return None

    def show_html(self, html: str) -> None:
        """Show a text, as high as it needs up to a limit."""
        self.setHtml(html)
        self._fit()

    def resizeEvent(self, event: Any) -> None:
        """Take another height when the lines break elsewhere."""
        super().resizeEvent(event)
        self._fit()

    def _fit(self) -> None:
        self.document().setTextWidth(self.viewport().width())
        height = int(self.document().size().height()) + 4
        self.setFixedHeight(min(max(height, _LEAST_HEIGHT), _MOST_HEIGHT))


class ModelInfoPanel(QgsCollapsibleGroupBoxBasic):
    """The essentials of a model; whether it is open is remembered."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(tr("About the model"), parent)
        self.browser = InfoBrowser()
        column = QVBoxLayout(self)
        column.setContentsMargins(4, 2, 4, 4)
        column.addWidget(self.browser)
        self.setCollapsed(bool(QgsSettings().value(COLLAPSED_SETTING, False, type=bool)))
        self.collapsedStateChanged.connect(lambda is_collapsed: _remember(is_collapsed))
        self.setVisible(False)

    def show_package(self, package: ModelPackage | None) -> None:
        """Describe a package; nothing is shown where there is none."""
        html = _html_of(package) if package is not None else ""
        self.browser.show_html(html)
        self.setVisible(bool(html))


def _remember(is_collapsed: bool) -> None:
    QgsSettings().setValue(COLLAPSED_SETTING, is_collapsed)


def _html_of(package: ModelPackage) -> str:
    try:
        sha256 = known_sha256(package) if needs_consent(package) else ""
        # Without the hash of the weights: they may be large, and a dialog must not wait.
        code = {**describe_code(package, sha256 or "unknown"), "sha256": sha256}
        description = {**describe_definition(package.definition), "code": code}
    except InferenceError:
        return ""  # the line above says what is wrong
    return essentials(description, state_of(package))


class Notice(QFrame):
    """A line with a warning, and a button with the remedy.

    Signals:
        pressed: the button was pressed.
    """

    pressed = pyqtSignal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.label = QLabel()
        self.label.setTextFormat(Qt.TextFormat.PlainText)
        self.label.setWordWrap(True)
        self.label.setStyleSheet(f"color: {WARNING_COLOR}")
        self.button = QPushButton()
        self.button.clicked.connect(lambda *_: self.pressed.emit())
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addWidget(self.label, 1)
        row.addWidget(self.button, 0, Qt.AlignmentFlag.AlignTop)
        self.setVisible(False)

    def show_text(self, text: str, button: str = "") -> None:
        """Show a warning, with a button where there is one; an empty text hides the line."""
        self.label.setText(to_plain(text))
        self.button.setText(button)
        self.button.setVisible(bool(button))
        self.setVisible(bool(text))


class ConsentNotice(Notice):
    """Tells that a model holds a program that may not run yet, and lets a person look at it.

    Signals:
        decided: somebody has looked at it; it may be allowed now.
    """

    decided = pyqtSignal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._package: ModelPackage | None = None
        self._source = ""
        self.pressed.connect(lambda: self._ask())

    def show_package(self, package: ModelPackage | None, source: str) -> None:
        """Look at a package."""
        self._package, self._source = package, source
        consent = state_of(package)
        if consent is Consent.MISSING:
            self.show_text(tr("This model holds a program that has not been allowed yet."), tr("Look and allow\u2026"))
        elif consent is Consent.UNKNOWN:
            self.show_text(tr("This model holds a large program, not looked at yet."), tr("Look and allow\u2026"))
        elif consent is Consent.DENIED:
            self.show_text(tr("This model is a program, which the administrator of this QGIS does not allow."))
        else:
            self.show_text("")

    def make_dialog(self) -> ConsentDialog | None:
        """Give the dialog that shows the program; None, and a line that says why, where it cannot be read."""
        if self._package is None:
            return None
        QApplication.setOverrideCursor(Qt.CursorShape.WaitCursor)
        try:
            return ConsentDialog(self._package, self._source, self)
        except (InferenceError, OSError) as error:
            self.show_text(tr("The program cannot be shown: {error}").format(error=error))
            return None
        finally:
            QApplication.restoreOverrideCursor()

    def _ask(self) -> None:
        dialog = self.make_dialog()
        if dialog is not None:
            dialog.exec()
            self.show_package(self._package, self._source)
            self.decided.emit()


def state_of(package: ModelPackage | None) -> Consent | None:
    """Tell whether a package's program may run; None where it has none, or cannot be read.

    Large ones are not hashed for it: they are unknown until somebody looks at them.
    """
    if package is None or not needs_consent(package):
        return None
    try:
        sha256 = known_sha256(package)
    except InferenceError:
        return None
    return consent_to(sha256) if sha256 else Consent.UNKNOWN


class FitNotice(Notice):
    """Tells what does not suit between raster and model.

    Signals:
        cell_size_wanted: a cell size that fits, in the raster's units, was asked for.
    """

    cell_size_wanted = pyqtSignal(float)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.has_cell_size = True
        """Whether there is a parameter to fill in."""
        self._fitting = 0.0
        self.pressed.connect(lambda: self.cell_size_wanted.emit(self._fitting))

    def show_report(self, report: FitReport | None) -> None:
        """Show what a comparison found."""
        problem = report.cell_size if report is not None else None
        self._fitting = float(f"{problem.fitting:.3g}") if problem else 0.0
        texts = [*report.all_texts(), *report.remarks] if report is not None else []
        self.show_text(" ".join(texts), tr("Use the model's cell size") if problem and self.has_cell_size else "")
