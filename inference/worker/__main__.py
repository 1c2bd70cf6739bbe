"""Start file of the worker: `python -I -u <plugins>/kestrel/inference/worker/__main__.py JOB_FOLDER`.

Run as a file, not as a module: isolated mode (-I) keeps the working directory and PYTHONPATH out of the module search,
so no json.py or torch.py that lies around is imported. Up to the check of the version, this runs on any Python 3.7.
"""

import importlib
import json
import os
import sys
from pathlib import Path

# Symbolic links stay as they are: the plugin folder's name is the package's name, where it leads to is not.
_PLUGIN = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
_INFERENCE = os.path.basename(_PLUGIN) + ".inference"  # noqa: PTH119


def _refuse_old_python() -> None:
    """End the process where the rest could not even be imported."""
    versions = importlib.import_module(_INFERENCE + ".versions")
    floor = versions.PYTHON_FLOOR
    if sys.version_info >= versions.version_numbers(floor):
        return
    errors = importlib.import_module(_INFERENCE + ".errors")
    error = errors.WorkerStartError(
        f"Python {sys.version.split()[0]} is too old for the inference environment: {floor} or newer is needed.",
        hint=versions.SETUP_HINT,
        interpreter=sys.executable,
    )
    sys.stdout.write(json.dumps({"type": "failed", "error": error.to_dict()}) + "\n")
    sys.stdout.flush()
    sys.exit(1)


if __name__ == "__main__":
    # At the end, so that nothing in there stands before an installed library.
    sys.path.append(os.path.dirname(_PLUGIN))  # noqa: PTH120
    _refuse_old_python()
    main = importlib.import_module(_INFERENCE + ".worker.main")
    main.leave(main.run(Path(sys.argv[1]), main.load_detect))
