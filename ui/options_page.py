"""Settings > Options > Kestrel: which Python runs the models, and making one."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from qgis.core import QgsApplication, QgsSettings
from qgis.gui import QgsFileWidget, QgsOptionsPageWidget, QgsOptionsWidgetFactory
from qgis.PyQt.QtCore import Qt
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QMessageBox,
    QPlainTextEdit,
    QPushButton,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from ..inference.errors import InferenceError
from ..inference.worker.managed import default_target
from ..processing_provider.code_consent import policy_text, revoke, trusted_programs
from ..processing_provider.icon import ICON_PATH
from ..processing_provider.interpreter import (
    BACKEND_SETTING,
    EXTRAS,
    SETTING,
    VARIABLE,
    find_interpreter,
    managed_interpreter,
)
from ..processing_provider.text import to_plain, tr
from .environment_task import EnvironmentTask, ExtraTask, InstallTask, ProbeTask
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
        self._extras = {name: QPushButton(tr("Install {name}\u2026").format(name=name)) for name in EXTRAS}
        self._state = QLabel()
        self._policy = QLabel()
        self._programs = QTreeWidget()
        self._revoke = QPushButton(tr("Revoke"))
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
        for label in (self._state, self._policy):
            label.setTextFormat(Qt.TextFormat.PlainText)
            label.setWordWrap(True)
        self._programs.setRootIsDecorated(False)
        self._programs.setHeaderLabels([tr("Model"), tr("Allowed on"), tr("SHA-256 of its content")])
        self._programs.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self._programs.setMaximumHeight(130)
        self._show_programs()

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
        optional = QGroupBox(tr("Optional parts"))
        column = QVBoxLayout(optional)
        for name, (purpose, _) in _purposes().items():
            row = QHBoxLayout()
            row.addWidget(_explanation(purpose), 1)
            row.addWidget(self._extras[name])
            column.addLayout(row)
        programs = QGroupBox(tr("Models that may run a program of their own"))
        below = QHBoxLayout()
        below.addWidget(self._policy, 1)
        below.addWidget(self._revoke, 0, Qt.AlignmentFlag.AlignTop)
        column = QVBoxLayout(programs)
        column.addWidget(self._programs)
        column.addLayout(below)
        page = QVBoxLayout(self)
        page.addWidget(chosen)
        page.addWidget(managed)
        page.addWidget(optional)
        page.addWidget(programs)
        page.addWidget(self._log, 1)

    def _connect(self) -> None:
        self._check.clicked.connect(self._start_check)
        self._set_up.clicked.connect(self._ask_and_start)
        for name, button in self._extras.items():
            button.clicked.connect(partial(self._ask_for_extra, name))
        self._revoke.clicked.connect(self._revoke_selected)
        self._programs.itemSelectionChanged.connect(self._show_revocable)
        self._cancel.clicked.connect(self._cancel_tasks)
        for task in self._tasks:
            self._listen(task)

    def _listen(self, task: Any) -> None:
        # Bound methods of a QObject: Qt cuts the connection when the page goes.
        if isinstance(task, InstallTask):
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
        for button in self._extras.values():
            button.setEnabled(not is_busy)
        self._cancel.setEnabled(is_busy)

    def _show_programs(self) -> None:
        self._programs.clear()
        for entry in trusted_programs():
            item = QTreeWidgetItem([to_plain(entry.name, 80), to_plain(entry.date, 20), entry.sha256])
            self._programs.addTopLevelItem(item)
        self._policy.setText(policy_text())
        self._show_revocable()

    def _show_revocable(self) -> None:
        self._revoke.setEnabled(bool(self._programs.selectedItems()))

    def _revoke_selected(self) -> None:
        for item in self._programs.selectedItems():
            revoke(item.text(2))
        self._show_programs()

    def _ask_for_extra(self, name: str, _: bool = False) -> None:
        try:
            interpreter = self._interpreter.filePath().strip() or find_interpreter()
        except InferenceError as error:
            self._log.setPlainText(str(error))
            return
        question = tr(
            "Kestrel will download {name} ({size}) and install it into {interpreter}. Each file is "
            "checked against a locked list of hashes. Go on?"
        ).format(name=name, size=_purposes()[name][1], interpreter=to_plain(interpreter))
        buttons = QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.No
        title = tr("Install {name}").format(name=name)
        answer = QMessageBox.question(self, title, question, buttons, QMessageBox.StandardButton.No)
        if answer == QMessageBox.StandardButton.Yes:
            self._log.clear()
            self._start(ExtraTask(interpreter, EXTRAS[name], name))

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
    if not isinstance(task, InstallTask) or task.is_given_up:
        return
    if not is_good:
        show_error(iface, text)
        return
    if isinstance(task, EnvironmentTask):
        settings = QgsSettings()
        settings.setValue(BACKEND_SETTING, task.backend)
        # An interpreter that was chosen before would go before the new environment.
        settings.remove(SETTING)
    show_success(iface, text)


def _purposes() -> dict[str, tuple[str, str]]:
    """Give what each optional library is for, and how much there is to download."""
    return {
        "TensorFlow": (
            tr("TensorFlow, for models of its Object Detection API (several hundred MB)."), tr("several hundred MB"),
        ),
        "Transformers": (
            tr("Hugging Face Transformers, for model folders of DETR and its relatives, and for models that look for "
               "what a text says (about 50 MB)."), tr("about 50 MB"),
        ),
    }  # fmt: skip


def _explanation(text: str) -> QLabel:
    label = QLabel(text)
    label.setWordWrap(True)
    return label


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
