"""LookTask: looks at rasters that are far away or many, in the background, while a dialog is open."""

from __future__ import annotations

from qgis.core import QgsCoordinateTransformContext, QgsTask
from qgis.PyQt.QtCore import pyqtSignal

from ..inference.errors import InferenceError
from ..inference.events import Canceled
from ..inference.net.http import make_client
from ..inference.net.limits import FIRST_CONTACT
from ..inference.secrets import Secrets
from ..processing_provider.inputs import InputList, InputRasters, opened
from ..processing_provider.text import tr


class LookTask(QgsTask):
    """Looks at a run's rasters; nothing is downloaded.

    Args:
        inputs: What the parameters name, see `can_look`.
        transforms: How coordinates are converted.
        secrets: What signs in to servers.

    Signals:
        ended: what came out (InputRasters), or why nothing did (a text); None: it was cancelled.
    """

    ended = pyqtSignal(object)

    def __init__(self, inputs: InputList, transforms: QgsCoordinateTransformContext, secrets: Secrets) -> None:
        flags = QgsTask.Flag.CanCancel | QgsTask.Flag.Silent
        super().__init__(tr("Look at the rasters of a detection"), flags)
        self.inputs = inputs
        self._transforms, self._secrets = transforms, secrets
        self._found: InputRasters | str | None = None

    def run(self) -> bool:
        """Work, in a thread."""
        try:
            self._found = self._look()
        except Canceled:
            return False
        except InferenceError as error:
            self._found = str(error)
        except Exception as error:
            # A thread of QGIS's would end with it without a word.
            self._found = tr("Unexpected error ({kind}): {text}").format(kind=type(error).__name__, text=error)
        return True

    def _look(self) -> InputRasters:
        if not self.inputs.servers:
            return opened(self.inputs, self._transforms, told=self._goes_on)
        client = make_client(self._secrets, limits=FIRST_CONTACT, is_cancelled=self.isCanceled)
        try:
            return opened(self.inputs, self._transforms, client, self._goes_on)
        finally:
            client.close()

    def _goes_on(self, done: int, total: int) -> bool:
        return not self.isCanceled()

    def finished(self, result: bool) -> None:
        """Tell the end, in the main thread."""
        self.ended.emit(self._found if result else None)


def can_look(inputs: InputList) -> bool:
    """Tell whether a look costs little: a portal's item may be a file that would have to be downloaded."""
    return not any(server.reference.portal for server in inputs.servers)
