"""Runs inside a real QGIS (`qgis --code`): waits for the window, runs a test's script, writes its answer, ends."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qgis.utils
from qgis.core import QgsApplication
from qgis.PyQt.QtCore import QTimer
from qgis.PyQt.QtWidgets import QWidget

_SECONDS = float(os.environ["KESTREL_GUI_SECONDS"])


def _write(**outcome: Any) -> None:
    Path(os.environ["KESTREL_GUI_ANSWER"]).write_text(json.dumps(outcome), "utf-8")


def _fail(kind: Any, error: Any, trace: Any, *_: Any, **__: Any) -> None:
    """Replace QGIS's box for Python errors: it is modal, and nobody is there to close it."""
    _write(error="".join(traceback.format_exception(kind, error, trace)))
    os._exit(1)


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Let QGIS work until the condition holds; give its value."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise TimeoutError(f"still not so after {seconds:.0f} seconds")
        QgsApplication.processEvents()
        time.sleep(0.02)


def save_picture(widget: QWidget, path: str) -> None:
    """Save a picture of a window or a part of it."""
    QgsApplication.processEvents()
    assert widget.grab().save(path)


def _main() -> None:
    answers: list[Any] = []
    source = Path(os.environ["KESTREL_GUI_SCRIPT"])
    names = {
        "__name__": "__main__",
        "__file__": str(source),
        "iface": qgis.utils.iface,
        "arguments": json.loads(os.environ["KESTREL_GUI_ARGUMENTS"]),
        "wait_until": wait_until,
        "save_picture": save_picture,
        "answer": answers.append,
    }
    try:
        exec(compile(source.read_text("utf-8"), str(source), "exec"), names)
        _write(answer=answers[-1] if answers else None)
    except BaseException as error:
        _fail(type(error), error, error.__traceback__)
    os._exit(0)


faulthandler.enable()
faulthandler.dump_traceback_later(_SECONDS, exit=True)


# After QGIS has set its own.
sys.excepthook = _fail
qgis.utils.showException = _fail
# The window comes up, and the plugins start, after the code given with --code was read.
QTimer.singleShot(1500, _main)
