"""Making the inference environment in the background, in QGIS's task manager."""

from __future__ import annotations

from pathlib import Path

from qgis.core import QgsTask
from qgis.PyQt.QtCore import pyqtSignal

from ..inference.errors import InferenceError
from ..inference.worker.managed import create_environment, default_target, install_extra, installed_extras
from ..inference.worker.probe import probe
from ..processing_provider.interpreter import EXTRAS, REQUIREMENTS
from ..processing_provider.text import tr


class InstallTask(QgsTask):
    """Downloads and installs; it goes on when the options are closed.

    Signals:
        line: the installer said something.
        ended: is_good, text: it is over.

    Attributes:
        is_given_up: It was cancelled.
    """

    line = pyqtSignal(str)
    ended = pyqtSignal(bool, str)

    def __init__(self, description: str, success: str) -> None:
        super().__init__(description, QgsTask.Flag.CanCancel)
        self.is_given_up = False
        self._success = success
        self._text = ""

    def install(self) -> bool:
        """Do the work, in a thread, and tell whether it was done; False: it was cancelled.

        Raises:
            InferenceError: it cannot be done.
        """
        raise NotImplementedError

    def run(self) -> bool:
        """Work, in a thread."""
        try:
            is_done = self.install()
        except InferenceError as error:
            self._text = str(error)
            return False
        except Exception as error:
            # A thread of QGIS's would end with it without a word.
            self._text = tr("Unexpected error ({kind}): {text}").format(kind=type(error).__name__, text=error)
            return False
        self.is_given_up = not is_done
        self._text = self._success if is_done else tr("Canceled.")
        return is_done

    def finished(self, result: bool) -> None:
        """Tell the end, in the main thread."""
        if not self._text:
            # It was cancelled before it started: QGIS ends it without `run`.
            self.is_given_up, self._text = True, tr("Canceled.")
        self.ended.emit(result, self._text)


class EnvironmentTask(InstallTask):
    """Makes the environment.

    Args:
        backend: Which torch, see `create_environment`.
    """

    def __init__(self, backend: str) -> None:
        super().__init__(tr("Set up Kestrel's inference environment"), tr("The inference environment is ready."))
        self.backend = backend

    def install(self) -> bool:
        """Make it."""
        target = default_target()
        kept = [path for path in EXTRAS.values() if path.stem in installed_extras(target)]
        made = create_environment(
            target, REQUIREMENTS, None, self.line.emit, self.isCanceled, torch_backend=self.backend, extras=kept
        )
        return made is not None


class ExtraTask(InstallTask):
    """Installs an optional library into the environment that runs the models.

    Args:
        interpreter: The environment's Python.
        requirements: Its locked requirements.
        name: How people call it.
    """

    def __init__(self, interpreter: str, requirements: Path, name: str) -> None:
        super().__init__(tr("Install {name}").format(name=name), tr("{name} is installed.").format(name=name))
        self._interpreter, self._requirements = interpreter, requirements

    def install(self) -> bool:
        """Install it."""
        return install_extra(self._interpreter, self._requirements, self.line.emit, self.isCanceled)


class ProbeTask(QgsTask):
    """Asks an interpreter what it has.

    Signals:
        ended: is_good, text: the report.
    """

    ended = pyqtSignal(bool, str)

    def __init__(self, interpreter: str) -> None:
        super().__init__(tr("Check the inference interpreter"), QgsTask.Flag.CanCancel)
        self._interpreter = interpreter
        self._text = ""

    def run(self) -> bool:
        """Work, in a thread."""
        report = probe(self._interpreter)
        found = [f"Python {report.python}"] if report.python else []
        found += [f"{name} {version}" for name, version in report.versions.items()]
        devices = [f"{device.name}: {device.title}" for device in report.devices] or [tr("No graphics processor")]
        lines = [report.interpreter, ", ".join(found), *devices, *report.problems]
        self._text = "\n".join(line for line in lines if line)
        return report.is_usable

    def finished(self, result: bool) -> None:
        """Tell the end, in the main thread."""
        verdict = tr("This interpreter can be used.") if result else tr("This interpreter cannot be used.")
        self.ended.emit(result, f"{verdict}\n{self._text}")
