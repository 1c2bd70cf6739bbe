"""Which Python runs the worker: the user's setting, the environment variable, or the managed environment."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from qgis.core import QgsSettings

from ..inference.errors import WorkerStartError
from ..inference.worker.managed import default_target, ready_interpreter

SETTING = "kestrel/interpreter"
BACKEND_SETTING = "kestrel/torch_backend"
VARIABLE = "KESTREL_PYTHON"
REQUIREMENTS = Path(__file__).parent.parent / "requirements" / "inference.txt"
EXTRAS = {
    name: REQUIREMENTS.with_name(f"{stem}.txt")
    for name, stem in (("TensorFlow", "tensorflow"), ("Transformers", "transformers"))
}
"""Optional libraries by the names that people know, and their locked requirements."""

_WAY_OUT = "Open Settings > Options > Kestrel to choose one or to set up the environment."


def chosen_interpreter() -> str:
    """Give the interpreter that the environment variable or the setting names, or an empty text."""
    return os.environ.get(VARIABLE, "").strip() or str(QgsSettings().value(SETTING, "") or "").strip()


def managed_interpreter() -> str | None:
    """Give the interpreter of the managed environment, or None where it is missing, unfinished or out of date."""
    backend = str(QgsSettings().value(BACKEND_SETTING, "") or "")
    return ready_interpreter(default_target(), REQUIREMENTS, backend)


def find_interpreter() -> str:
    """Give the interpreter to start the worker with.

    Raises:
        WorkerStartError: none is configured, or it is not there.
    """
    chosen = chosen_interpreter()
    if not chosen:
        managed = managed_interpreter()
        if managed is None:
            raise WorkerStartError("The inference environment, the Python with torch, is not set up.", hint=_WAY_OUT)
        return str(Path(managed).absolute())
    found = shutil.which(chosen)
    if found is None:
        raise WorkerStartError(f"The inference interpreter '{chosen}' does not exist or cannot be run.", hint=_WAY_OUT)
    # The worker starts in a folder of its own. A link is kept: a virtual environment is known by its path.
    return str(Path(found).absolute())
