"""Settings > Options > Kestrel: which Python runs the models, and making one."""

from __future__ import annotations

import os
from typing import Any

from qgis.core import QgsApplication, QgsSettings
from qgis.gui import QgsFileWidget, QgsOptionsPageWidget, QgsOptionsWidgetFactory
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import (
    QComboBox,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QMessageBox,
    QPlainTextEdit,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from ..inference.errors import InferenceError
from ..inference.worker.managed import default_target
from ..processing_provider.icon import ICON_PATH
from ..processing_provider.interpreter import BACKEND_SETTING, SETTING, VARIABLE, find_interpreter, managed_interpreter
from ..processing_provider.text import to_plain, tr
from .environment_task import EnvironmentTask, ProbeTask
from .messages import show_error, show_success

_MOST_LINES = 2000


class KestrelOptionsPage(QgsOptionsPageWidget):
    """The page.

    Args:
        iface: QGIS's window, for messages.
        tasks: Keeps what runs, also while the page is closed.
    """

    def __init__(self, parent: QWidget | None, iface: Any, tasks: list[Any]) -> None:
        super().__init__(parent)
        self._iface = iface
        self._tasks = tasks
        self._interpreter = QgsFileWidget()
        self._check = QPushButton(tr("Check"))
        self._backend = QComboBox()
        self._set_up = QPushButton(tr("Set up environment\u2026"))
        self._cancel = QPushButton(tr("Cancel"))
        self._state = QLabel()
        self._log = QPlainTextEdit()
        self._fill()
        self._lay_out()
        self._connect()
        self._show_state()

    def apply(self) -> None:
        """Store the settings; QGIS calls this on OK."""
        QgsSettings().setValue(SETTING, self._interpreter.filePath().strip())

    def _fill(self) -> None:
        self._interpreter.setFilePath(str(QgsSettings().value(SETTING, "") or ""))
        self._interpreter.lineEdit().setPlaceholderText(tr("Kestrel's own environment, see below"))
        self._backend.addItem(tr("With CUDA where the system has it (about 3 GB)"), "")
        self._backend.addItem(
            tr("What fits this computer's graphics processor (up to 3 GB; needs the tool uv)"), "auto"
        )
        self._backend.addItem(tr("Processor only (about 300 MB; needs the tool uv)"), "cpu")
        self._log.setReadOnly(True)
        self._log.setMaximumBlockCount(_MOST_LINES)
        self._state.setWordWrap(True)

    def _lay_out(self) -> None:
        interpreter = QHBoxLayout()
        interpreter.addWidget(self._interpreter, 1)
        interpreter.addWidget(self._check)
        chosen = QGroupBox(tr("Python that runs the models"))
        form = QFormLayout(chosen)
        form.addRow(tr("Interpreter"), interpreter)
        buttons = QHBoxLayout()
        buttons.addWidget(self._backend, 1)
        buttons.addWidget(self._set_up)
        buttons.addWidget(self._cancel)
        managed = QGroupBox(tr("Kestrel's own environment"))
        column = QVBoxLayout(managed)
        column.addWidget(self._state)
        column.addLayout(buttons)
        page = QVBoxLayout(self)
        page.addWidget(chosen)
        page.addWidget(managed)
        page.addWidget(self._log, 1)

    def _connect(self) -> None:
        self._check.clicked.connect(self._start_check)
        self._set_up.clicked.connect(self._ask_and_start)
        self._cancel.clicked.connect(self._cancel_tasks)
        for task in self._tasks:
            self._listen(task)

    def _listen(self, task: Any) -> None:
        # Bound methods of a QObject: Qt cuts the connection when the page goes.
        if isinstance(task, EnvironmentTask):
            task.line.connect(self._add_line)
        task.ended.connect(self._show_end)

    def _show_state(self) -> None:
        texts = []
        if os.environ.get(VARIABLE):
            texts.append(
                tr("The environment variable {name} is set and goes before all of this.").format(name=VARIABLE)
            )
        place = to_plain(default_target())
        if managed_interpreter() is not None:
            texts.append(tr("Ready, in {place}.").format(place=place))
        else:
            texts.append(
                tr("Not set up yet. It would be made in {place}; QGIS's own Python is not touched.").format(place=place)
            )
        self._state.setText(" ".join(texts))
        is_busy = bool(self._tasks)
        self._check.setEnabled(not is_busy)
        self._set_up.setEnabled(not is_busy)
        self._cancel.setEnabled(is_busy)

    def _start_check(self) -> None:
        interpreter = self._interpreter.filePath().strip()
        try:
            interpreter = interpreter or find_interpreter()
        except InferenceError as error:
            self._log.setPlainText(str(error))
            return
        self._log.setPlainText(tr("Checking {interpreter} \u2026").format(interpreter=interpreter))
        self._start(ProbeTask(interpreter))

    def _ask_and_start(self) -> None:
        question = tr(
            "Kestrel will download Python packages (about 3 GB with CUDA, 300 MB for the processor only) and install "
            "them in {place}. Each file is checked against a locked list of hashes; where "
            "uv chooses torch, torch and torchvision come from PyTorch's own index without one. Go on?"
        ).format(place=to_plain(default_target()))
        buttons = QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.No
        answer = QMessageBox.question(self, tr("Set up environment"), question, buttons, QMessageBox.StandardButton.No)
        if answer == QMessageBox.StandardButton.Yes:
            self._log.clear()
            self._start(EnvironmentTask(self._backend.currentData()))

    def _start(self, task: Any) -> None:
        self._tasks.append(task)
        tasks, iface = self._tasks, self._iface
        task.ended.connect(lambda is_good, text: _ended(tasks, task, iface, is_good, text))
        self._listen(task)
        self._show_state()
        QgsApplication.taskManager().addTask(task)

    def _cancel_tasks(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def _add_line(self, line: str) -> None:
        self._log.appendPlainText(line)

    def _show_end(self, is_good: bool, text: str) -> None:
        self._log.appendPlainText(text)
        if isinstance(self.sender(), EnvironmentTask) and is_good:
            self._interpreter.setFilePath("")
        self._show_state()


def _ended(tasks: list[Any], task: Any, iface: Any, is_good: bool, text: str) -> None:
    """Note the end of a task, whether or not the page is still open."""
    tasks.remove(task)
    if not isinstance(task, EnvironmentTask) or task.is_given_up:
        return
    if not is_good:
        show_error(iface, text)
        return
    settings = QgsSettings()
    settings.setValue(BACKEND_SETTING, task.backend)
    # An interpreter that was chosen before would go before the new environment.
    settings.remove(SETTING)
    show_success(iface, text)


class KestrelOptionsFactory(QgsOptionsWidgetFactory):
    """Puts the page into QGIS's options.

    Args:
        iface: QGIS's window.
    """

    def __init__(self, iface: Any) -> None:
        super().__init__("Kestrel", QIcon(ICON_PATH), "kestrel")
        self._iface = iface
        self._tasks: list[Any] = []

    def createWidget(self, parent: QWidget) -> KestrelOptionsPage:
        """Make the page."""
        return KestrelOptionsPage(parent, self._iface, self._tasks)
