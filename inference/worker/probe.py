"""What an interpreter can do for the worker: asked of the interpreter itself, in a process of its own, and judged.

QGIS and the project's set-up import this: it needs nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..versions import LIBRARY_FLOORS, PYTHON_FLOOR, TORCH_PAIR, is_older
from .environment import child_environment

NO_WINDOW: int = getattr(subprocess, "CREATE_NO_WINDOW", 0)
"""On Windows a console program that QGIS starts would open a window; elsewhere this is no flag at all."""

_CHOOSE_ANOTHER = "Choose another interpreter, or let Kestrel make its own, in Settings > Options > Kestrel."


@dataclass(frozen=True)
class ComputeDevice:
    """A processor that torch can use besides the CPU.

    Attributes:
        name: As torch is told: `cuda:0`, `mps`.
        title: As the maker calls it.
        memory: Bytes, 0 where unknown.
    """

    name: str
    title: str
    memory: int = 0


@dataclass(frozen=True)
class EnvironmentReport:
    """What `probe` found.

    Attributes:
        interpreter: The path that was asked about.
        python: Its version, empty when it did not start.
        versions: Installed version by library; a library that cannot be imported is missing. `gdal` is rasterio's own.
        devices: Graphics processors.
        problems: One text each, naming the remedy; empty when the worker can run.
    """

    interpreter: str
    python: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[ComputeDevice, ...] = ()
    problems: list[str] = field(default_factory=list)

    @property
    def is_usable(self) -> bool:
        """Whether the worker can run here."""
        return not self.problems


# Each library answers with a line of its own, so that one that crashes the interpreter is known by its silence.
_PROBE = """
import importlib, json, sys
def say(**line):
    sys.stdout.write(json.dumps(line) + chr(10))
    sys.stdout.flush()
say(library="python", version=".".join(map(str, sys.version_info[:3])))
for name in json.loads(sys.argv[1]):
    try:
        module = importlib.import_module(name)
        say(library=name, version=str(module.__version__))
        if name == "rasterio":
            say(library="gdal", version=str(module.__gdal_version__))
        if name == "torch":
            for index in range(module.cuda.device_count()):
                found = module.cuda.get_device_properties(index)
                say(device="cuda:%d" % index, title=found.name, memory=found.total_memory)
            if module.backends.mps.is_available():
                say(device="mps", title="Apple GPU", memory=0)
    except BaseException as error:
        say(library=name, error="%s: %s" % (type(error).__name__, error))
"""


def probe(interpreter: str, timeout: float = 120.0) -> EnvironmentReport:
    """Ask an interpreter what it has, and judge it.

    Args:
        interpreter: Path of a Python executable.
        timeout: Seconds; the first import of torch from a cold disk takes tens of them.

    Returns:
        A report, whatever happens: an interpreter that does not start is a problem in it.
    """
    command = [interpreter, "-I", "-X", "utf8", "-c", _PROBE, json.dumps(list(LIBRARY_FLOORS))]
    crash = ""
    try:
        answer = subprocess.run(  # nosec B603 - a list, no shell; the user chose this interpreter
            command,
            env=child_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
            creationflags=NO_WINDOW,
        )
        output, code = answer.stdout, answer.returncode
    except subprocess.TimeoutExpired as error:
        output, code = error.stdout or b"", -1
        crash = f"did not answer within {timeout:.0f} seconds"
    except OSError as error:
        problem = f"The interpreter {interpreter} cannot be started: {error.strerror or error}. {_CHOOSE_ANOTHER}"
        return EnvironmentReport(interpreter, problems=[problem])
    if code != 0 and not crash:
        crash = f"ended with code {code}"
    return _judge(interpreter, list(_json_lines(output)), crash)


def _json_lines(output: bytes) -> Iterator[dict[str, Any]]:
    for line in output.decode("utf-8", "replace").splitlines():
        # Some libraries greet on stdout when they are imported.
        if line.startswith("{"):
            yield json.loads(line)


def _judge(interpreter: str, lines: list[dict[str, Any]], crash: str) -> EnvironmentReport:
    versions = {line["library"]: line["version"] for line in lines if "version" in line}
    errors = {line["library"]: line["error"] for line in lines if "error" in line}
    devices = tuple(ComputeDevice(line["device"], line["title"], line["memory"]) for line in lines if "device" in line)
    python = versions.pop("python", "")
    if not python:
        problem = f"{interpreter} is not a Python that can be used: it {crash or 'said nothing'}. {_CHOOSE_ANOTHER}"
        return EnvironmentReport(interpreter, problems=[problem])
    problems = []
    if is_older(python, PYTHON_FLOOR):
        problems.append(f"Python {python} is too old: {PYTHON_FLOOR} or newer is needed. {_CHOOSE_ANOTHER}")
    for library, floor in LIBRARY_FLOORS.items():
        if library in versions:
            if is_older(versions[library], floor):
                problems.append(f"{library} {versions[library]} is too old. {_install_hint(interpreter, library)}")
        elif library in errors:
            problems.append(_import_problem(interpreter, library, errors[library], versions))
        else:
            advice = _install_hint(interpreter, library)
            problems.append(f"The interpreter {crash} while it imported {library}. {advice}")
            break
    return EnvironmentReport(interpreter, python, versions, devices, problems)


def _import_problem(interpreter: str, library: str, error: str, versions: Mapping[str, str]) -> str:
    if "torchvision::nms" in error:
        # Source: what torchvision's binary says when it was built for another release or build of torch.
        return (
            f"torchvision does not fit the installed torch {versions.get('torch', '')}: they must come as a pair from "
            f"one source. {_install_hint(interpreter, *TORCH_PAIR)}"
        )
    if error.startswith("ModuleNotFoundError") and f"'{library}'" in error:
        return f"{library} is not installed. {_install_hint(interpreter, library)}"
    advice = _install_hint(interpreter, library)
    if "WinError 1114" in error or "WinError 126" in error:
        advice = "Install Microsoft's Visual C++ Redistributable (x64), then restart QGIS."
    return f"{library} cannot be imported ({error}). {advice}"


def _install_hint(interpreter: str, *libraries: str) -> str:
    wanted = " ".join(f'"{name}>={LIBRARY_FLOORS[name]}"' for name in libraries)
    force = "--force-reinstall " if len(libraries) > 1 else ""
    return (
        f'Run: "{interpreter}" -m pip install --upgrade {force}{wanted}, '
        "or let Kestrel make its own environment in Settings > Options > Kestrel."
    )
