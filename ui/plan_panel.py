"""What the run will have to do, below the model: at once from the definition, and on request from a trial tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qgis.core import QgsApplication, QgsProcessingFeedback, QgsTask
from qgis.PyQt import sip
from qgis.PyQt.QtCore import Qt, QTimer, pyqtSignal
from qgis.PyQt.QtWidgets import QFrame, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from ..inference.errors import InferenceError
from ..processing_provider.inputs import InputList
from ..processing_provider.job_builder import DetectionPlan
from ..processing_provider.pixel_server import PixelSource
from ..processing_provider.plan_estimate import PlanEstimate, estimate_text, plan_run, planned_text
from ..processing_provider.text import to_plain, tr
from .look_task import LookTask
from .model_info import WARNING_COLOR

_PAUSE = 300
"""Milliseconds without a change before the plan is made anew."""


class TrialTask(QgsTask):
    """Has the worker plan a run and try one tile.

    Signals:
        ended: text: what came out, or why nothing did; empty: it was cancelled.
    """

    ended = pyqtSignal(str)

    def __init__(self, make_plan: Callable[[], DetectionPlan], sources: Mapping[str, PixelSource]) -> None:
        super().__init__(tr("Estimate the time of a detection"), QgsTask.Flag.CanCancel)
        self._make_plan, self._sources = make_plan, sources
        self._feedback = QgsProcessingFeedback(False)
        self._text = ""

    def run(self) -> bool:
        """Work, in a thread."""
        try:
            summary = plan_run(self._make_plan(), self._sources, self._feedback)
        except InferenceError as error:
            self._text = str(error)
            return False
        except Exception as error:
            # A thread of QGIS's would end with it without a word.
            self._text = tr("Unexpected error ({kind}): {text}").format(kind=type(error).__name__, text=error)
            return False
        self._text = planned_text(summary) if summary is not None else ""
        return summary is not None

    def cancel(self) -> None:
        """Stop the worker."""
        self._feedback.cancel()
        super().cancel()

    def finished(self, result: bool) -> None:
        """Tell the end, in the main thread."""
        self.ended.emit(self._text)


class PlanPanel(QFrame):
    """A line that tells the plan, and a button that measures its time.

    Signals:
        wanted: the plan should be told anew: something has changed a moment ago.
        trial_wanted: the time should be measured.
        looked: the rasters that were asked for (InputList), and what was found: InputRasters, or why there are none.
    """

    wanted = pyqtSignal()
    trial_wanted = pyqtSignal()
    looked = pyqtSignal(object, object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.label, self.trial = _label(), _label()
        self.button = QPushButton(tr("Estimate time"))
        self.button.setToolTip(tr("Opens model and raster in the background and tries one tile; finds no objects."))
        self.button.clicked.connect(lambda *_: self._pressed())
        texts = QVBoxLayout()
        texts.addWidget(self.label)
        texts.addWidget(self.trial)
        row = QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        row.addLayout(texts, 1)
        row.addWidget(self.button, 0, Qt.AlignmentFlag.AlignTop)
        self._pause = QTimer(self)
        self._pause.setSingleShot(True)
        self._pause.setInterval(_PAUSE)
        self._pause.timeout.connect(lambda *_: self.wanted.emit())
        self._task: TrialTask | None = None
        self._look: LookTask | None = None
        self.setVisible(False)

    def expect(self) -> None:
        """Hear that something has changed."""
        self._pause.start()

    def show_estimate(self, plan: PlanEstimate | None, problem: str = "") -> None:
        """Show a plan, or why there is none; nothing is shown where there is neither."""
        text = problem or (tr("Plan: ") + estimate_text(plan) if plan is not None else "")
        is_warning = bool(problem) or (plan is not None and plan.is_too_large)
        self.label.setStyleSheet(f"color: {WARNING_COLOR}" if is_warning else "")
        if to_plain(text) != self.label.text():
            self._show_trial("")  # what was measured belongs to another plan
        self.label.setText(to_plain(text))
        self.button.setVisible(plan is not None)
        self.setVisible(bool(text))

    def show_later(self) -> None:
        """Say that only a trial can tell the plan: to look at the rasters takes time."""
        self._show_note(tr("Plan: the rasters are downloaded, and looked at, when the run starts."))

    def look(self, inputs: InputList, make_task: Callable[[], LookTask]) -> None:
        """Have rasters looked at in the background, unless that is going on; see `looked`.

        Args:
            inputs: The rasters.
            make_task: Gives the task that looks at them.
        """
        if self._look is not None and self._look.inputs == inputs:
            return
        if self._look is not None:
            _cancel(self._look)
        task = self._look = make_task()
        # See `start`.
        task.ended.connect(self._look_ended)
        self.destroyed.connect(lambda *_: _cancel(task))
        self._show_note(tr("Plan: looking at the rasters\u2026"))
        QgsApplication.taskManager().addTask(task)

    def _look_ended(self, found: Any) -> None:
        task = self.sender()
        if task is not self._look or self._look is None:
            return  # another one is awaited
        inputs, self._look = self._look.inputs, None
        if found is not None:
            self.looked.emit(inputs, found)

    def _show_note(self, text: str) -> None:
        self.show_estimate(None, text)
        self.label.setStyleSheet("")
        self.button.setVisible(True)

    @property
    def is_trying(self) -> bool:
        """Tell whether a trial goes on."""
        return self._task is not None

    def start(self, make_plan: Callable[[], DetectionPlan], sources: Mapping[str, PixelSource]) -> None:
        """Measure the time, in QGIS's task manager; it ends with this panel.

        Args:
            make_plan: Gives a plan whose job has `plan_only`; called in a thread.
            sources: What reads the rasters that only QGIS can read, see `inputs.take_sources`.
        """
        task = self._task = TrialTask(make_plan, sources)
        # To a method of this object and not to a function: Qt drops the connection when the dialog is gone.
        task.ended.connect(self._ended)
        self.destroyed.connect(lambda *_: _cancel(task))
        self.button.setText(tr("Cancel"))
        self._show_trial(tr("Trying one tile\u2026"))
        QgsApplication.taskManager().addTask(task)

    def tell(self, problem: str) -> None:
        """Say why the time cannot be measured."""
        self._show_trial(problem)

    def _pressed(self) -> None:
        if self._task is not None:
            _cancel(self._task)
        else:
            self.trial_wanted.emit()

    def _ended(self, text: str) -> None:
        self._task = None
        self.button.setText(tr("Estimate time"))
        self._show_trial(text)

    def _show_trial(self, text: str) -> None:
        self.trial.setText(to_plain(text))
        self.trial.setVisible(bool(text))


def _label() -> QLabel:
    label = QLabel()
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(True)
    return label


def _cancel(task: Any) -> None:
    if not sip.isdeleted(task):
        task.cancel()
