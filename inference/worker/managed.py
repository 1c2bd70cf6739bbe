"""The managed environment, Kestrel's own: where it lies, whether it is ready, how it is made, and with which Python.

Torch, rasterio and their GDAL, PROJ and OpenMP never enter QGIS's process; they live in an interpreter of their own.
QGIS and the project's set-up import this: it needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Callable

from ..errors import WorkerStartError
from ..jobs import cache_folder
from ..versions import LIBRARY_FLOORS, TORCH_FAMILY, TORCH_PAIR
from .environment import child_environment
from .probe import NO_WINDOW, probe

MARKER = "kestrel-environment.json"
"""File inside a managed environment that exists only once the environment is complete."""

_EXTRAS = "kestrel-extras.json"
"""File inside a managed environment with the names of the optional libraries that were installed into it."""

PYTHONS = ("3.12", "3.13", "3.11")
"""Python versions that an environment is made with, the preferred one first (rasterio 1.5 wants 3.12)."""

UV_PYTHON = ">=3.11,<3.14"
"""What uv is asked for when no Python was found: it knows more places, and can fetch one of its own."""

# Where packages come from is the user's choice; where they go (PIP_TARGET, UV_SYSTEM_PYTHON, ...) is not.
_INSTALLER = re.compile(
    r"^(PIP_(INDEX_URL|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|CERT|CLIENT_CERT|PROXY|TRUSTED_HOST|CACHE_DIR|CONFIG_FILE"
    r"|DEFAULT_TIMEOUT|RETRIES)"
    r"|UV_(DEFAULT_INDEX|INDEX.*|EXTRA_INDEX_URL|FIND_LINKS|NO_INDEX|OFFLINE|INSECURE_HOST|NATIVE_TLS|SYSTEM_CERTS"
    r"|CACHE_DIR|CONFIG_FILE|HTTP_TIMEOUT|LINK_MODE|PYTHON_INSTALL_(DIR|MIRROR))"
    r"|NETRC)$"
)

# -- The place, and what is there --------------------------------------------------------------------------------------


def default_target() -> Path:
    """Give the folder of the managed environment, in the user's cache."""
    return cache_folder() / "environment"


def interpreter_in(environment: Path) -> Path:
    """Give the path of an environment's interpreter."""
    return environment / "Scripts" / "python.exe" if sys.platform == "win32" else environment / "bin" / "python"


def ready_interpreter(target: Path, requirements: Path, torch_backend: str = "") -> str | None:
    """Give the interpreter of a complete environment made from these very requirements, else None."""
    try:
        made_from = json.loads((target / MARKER).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    interpreter = interpreter_in(target)
    if made_from != _recipe(requirements, torch_backend) or not interpreter.exists():
        return None
    return str(interpreter)


def installed_extras(target: Path) -> tuple[str, ...]:
    """Give the names of the optional libraries that were installed into a managed environment, in their order."""
    try:
        names = json.loads((target / _EXTRAS).read_text("utf-8"))
    except (OSError, ValueError):
        return ()
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def _note_extras(environment: Path, names: Sequence[str]) -> None:
    """Remember the optional libraries of an environment of Kestrel's own, so that a new one gets them too."""
    if names and (environment / MARKER).exists():
        (environment / _EXTRAS).write_text(json.dumps(list(dict.fromkeys(names))), "utf-8")


def _recipe(requirements: Path, torch_backend: str) -> dict[str, str]:
    # Line ends are not content: a checkout on Windows may change them.
    content = requirements.read_bytes().replace(b"\r\n", b"\n")
    return {"requirements_sha256": hashlib.sha256(content).hexdigest(), "torch_backend": torch_backend}


# -- Making an environment ---------------------------------------------------------------------------------------------


def create_environment(
    target: Path,
    requirements: Path,
    python: str | None,
    report: Callable[[str], None],
    is_cancelled: Callable[[], bool],
    *,
    uv: str | None = None,
    torch_backend: str = "",
    extras: Sequence[Path] = (),
) -> str | None:
    """Make the managed environment. Call it on the user's word only: it downloads gigabytes.

    It is built beside `target` and moved there when it is complete and works, so an interrupted or failed attempt
    leaves what was there before. Scripts of the environment are not to be called after the move, its interpreter is
    (`python -m ...`).

    Args:
        target: Folder of the environment; an environment that is there is replaced.
        requirements: Locked requirements with hashes; nothing else gets installed.
        python: A Python to make it with; None looks for one.
        report: Gets each line of the installer.
        is_cancelled: Asked several times a second; on True the installer is killed.
        uv: Path of uv; None looks along PATH. Without uv, venv and pip do the same, more slowly.
        torch_backend: Empty for the locked torch. Otherwise a backend as uv names it (`auto`, `cpu`, `cu128`): torch
            and torchvision then come from PyTorch's own index, without hashes. Needs uv.
        extras: Locked requirements of optional libraries that go into it too, see `install_extra`.

    Returns:
        The path of the interpreter; None when cancelled.

    Raises:
        WorkerStartError: No Python was found, or the installer failed, or what it made does not work.
    """
    uv, python = uv or shutil.which("uv"), python or find_python()
    _check_means(target, python, uv, torch_backend)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f"{target.name}.part-", dir=target.parent))
    except OSError as error:
        raise WorkerStartError(
            f"The folder {target.parent} cannot be written: {error.strerror}.", hint="Choose another folder."
        ) from error
    try:
        commands = _build_commands(staging, requirements, python or UV_PYTHON, uv, torch_backend)
        interpreter = str(interpreter_in(staging / "env"))
        for extra in extras:
            commands += _extra_commands(interpreter, extra, uv)
        for command in commands:
            if not _run(command, staging.parent, report, is_cancelled):
                return None
        built = probe(str(interpreter_in(staging / "env")))
        if not built.is_usable:
            raise WorkerStartError(
                "The new environment does not work.", hint=built.problems[0], problems=built.problems
            )
        (staging / "env" / MARKER).write_text(json.dumps(_recipe(requirements, torch_backend)), "utf-8")
        _note_extras(staging / "env", [extra.stem for extra in extras])
        # Not in the folder that is removed below: until the new environment stands, the old one is all there is.
        _replace(target, staging / "env", staging.with_name(f"{staging.name}.old"))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    report(f"The inference environment is ready: {target}")
    return str(interpreter_in(target))


def _check_means(target: Path, python: str | None, uv: str | None, torch_backend: str) -> None:
    """Refuse what cannot end well, before anything is downloaded."""
    if torch_backend and not uv:
        raise WorkerStartError(
            f"The torch backend {torch_backend!r} needs the tool uv, which is not installed.",
            hint="Install uv and make sure it is on PATH, or leave the backend empty.",
        )
    if target.exists() and not (target / "pyvenv.cfg").exists() and any(target.iterdir()):
        raise WorkerStartError(
            f"{target} holds something else than a Python environment.", hint="Choose another folder."
        )
    if not python and not uv:
        raise WorkerStartError(
            "No Python 3.11, 3.12 or 3.13 was found on this computer.",
            hint="Install one (or the tool uv, which brings its own), then try again.",
        )


def _build_commands(
    staging: Path, requirements: Path, python: str, uv: str | None, torch_backend: str
) -> list[list[str]]:
    environment = staging / "env"
    interpreter = str(interpreter_in(environment))
    if not uv:
        return [[python, "-I", "-m", "venv", str(environment)], _pip_install(interpreter, requirements)]
    install = [uv, "pip", "install", "--python", interpreter]
    make = [uv, "venv", "--no-project", "--relocatable", "--python", python, str(environment)]
    if not torch_backend:
        return [make, [*install, "--require-hashes", "-r", str(requirements)]]
    torch_pair, others = _split_torch(requirements.read_text("utf-8"))
    rest = staging / "requirements.txt"
    rest.write_text(others, "utf-8")
    return [
        make,
        [*install, "--torch-backend", torch_backend, *torch_pair],
        [*install, "--no-deps", "--require-hashes", "-r", str(rest)],
    ]


def install_extra(
    interpreter: str,
    requirements: Path,
    report: Callable[[str], None],
    is_cancelled: Callable[[], bool],
    *,
    uv: str | None = None,
) -> bool:
    """Install an optional library into an environment that is there. Call it on the user's word only: it downloads.

    An extra is locked together with the environment's own libraries, so none of them changes. An environment of
    Kestrel's own remembers it, so that it can be installed again when that is made anew.

    Args:
        interpreter: The environment's Python.
        requirements: Locked requirements with hashes, for example requirements/tensorflow.txt.
        report: Gets each line of the installer.
        is_cancelled: Asked several times a second; on True the installer is killed.
        uv: Path of uv; None looks along PATH. Without uv, pip does the same, more slowly.

    Returns:
        Whether it is installed; False when cancelled.

    Raises:
        WorkerStartError: There is no such interpreter, or the installer failed, or the environment does not work now.
    """
    if not Path(interpreter).is_file():
        raise WorkerStartError(
            f"There is no inference environment to install into: {interpreter} does not exist.",
            hint="Let Kestrel make its environment first, in Settings > Options > Kestrel.",
        )
    for command in _extra_commands(interpreter, requirements, uv or shutil.which("uv")):
        if not _run(command, Path(interpreter).parent, report, is_cancelled, f"Installing {requirements.stem}"):
            return False
    found = probe(interpreter)
    if not found.is_usable:
        raise WorkerStartError(
            f"The inference environment does not work with {requirements.stem} in it.",
            hint=f"{found.problems[0]} Or make the environment again, without it.",
            problems=found.problems,
        )
    environment = Path(interpreter).parent.parent
    _note_extras(environment, [*installed_extras(environment), requirements.stem])
    report(f"Installed {requirements.stem}.")
    return True


def _pip_install(interpreter: str, requirements: Path) -> list[str]:
    pip = [interpreter, "-I", "-m", "pip", "--disable-pip-version-check", "install", "--no-input"]
    return [*pip, "--progress-bar", "off", "--require-hashes", "-r", str(requirements)]


def _extra_commands(interpreter: str, requirements: Path, uv: str | None) -> list[list[str]]:
    if uv:
        return [[uv, "pip", "install", "--python", interpreter, "--require-hashes", "-r", str(requirements)]]
    # An environment that uv made has no pip; Python brings one along.
    return [[interpreter, "-I", "-m", "ensurepip"], _pip_install(interpreter, requirements)]


def _split_torch(locked: str) -> tuple[list[str], str]:
    """Split locked requirements: torch and torchvision up to their locked versions, and the text of all the others."""
    pair, others = [], []
    for block in re.split(r"\n(?=\S)", locked):
        requirement = re.match(r"([A-Za-z0-9._-]+)==(\S+)", block)
        if not requirement or not TORCH_FAMILY.match(requirement[1]):
            others.append(block)
        elif requirement[1] in TORCH_PAIR:
            # An older CUDA's index may lack the newest torch, hence a range.
            pair.append(f"{requirement[1]}>={LIBRARY_FLOORS[requirement[1]]},<={requirement[2]}")
    return pair, "\n".join(others)


def _replace(target: Path, new: Path, aside: Path) -> None:
    """Put a new environment in the place of the old one, which comes back when that fails."""
    try:
        if target.exists():
            target.rename(aside)
        try:
            new.rename(target)
        except OSError:
            if aside.exists():
                aside.rename(target)
            raise
    except OSError as error:
        hint = "It may be in use: stop all detection jobs, then try again."
        if aside.exists():
            hint += f" The environment that was there is now in {aside}."
        raise WorkerStartError(
            f"The environment in {target} cannot be replaced: {error.strerror}.", hint=hint
        ) from error
    shutil.rmtree(aside, ignore_errors=True)


def _run(
    command: Sequence[str],
    folder: Path,
    report: Callable[[str], None],
    is_cancelled: Callable[[], bool],
    what: str = "Making the inference environment",
) -> bool:
    """Run one installer command, telling its lines; False when cancelled."""
    try:
        child = subprocess.Popen(  # nosec B603 - a list, no shell; the arguments are ours or the user's own paths
            command,
            cwd=folder,
            env=_installer_environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            creationflags=NO_WINDOW,
            start_new_session=True,
        )
    except OSError as error:
        raise WorkerStartError(f"{command[0]} cannot be started: {error.strerror or error}.") from error
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in child.stdout or ():
            lines.put(line.rstrip())
        lines.put(None)

    # A thread, because reading a pipe cannot be interrupted by a cancel on every system.
    threading.Thread(target=read, daemon=True).start()
    last: list[str] = []
    try:
        while not is_cancelled():
            try:
                line = lines.get(timeout=0.2)
            except queue.Empty:
                continue
            if line is None:
                break
            report(line)
            last = [*last[-9:], line]
        else:
            return False
        code = child.wait()
    finally:
        _kill(child)
    if code != 0:
        raise WorkerStartError(
            f"{what} failed ({Path(command[0]).name} ended with code {code}).",
            hint=" ".join(last[-3:]),
            output=last,
        )
    return True


def _installer_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Give `child_environment` plus what says where pip and uv get packages from."""
    return {**child_environment(base), **{name: value for name, value in base.items() if _INSTALLER.match(name)}}


def _kill(child: subprocess.Popen[str]) -> None:
    """End a process, if it still runs, and what it started."""
    if child.poll() is not None:
        return
    if sys.platform == "win32":
        child.kill()  # a virtual environment's launcher takes its child with it
    else:
        # Ours alone: the child leads a session of its own.
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


# -- Finding a Python --------------------------------------------------------------------------------------------------

_WHO_ARE_YOU = """
import ensurepip, sys, venv
print("%d.%d" % sys.version_info[:2], sys.maxsize > 2**32, sys.executable, sep="|")
"""


def find_python() -> str | None:
    """Find a 64-bit Python that an environment can be made with, the preferred version first; None if there is none."""
    found: dict[str, str] = {}
    for candidate in _candidates():
        answer = _ask(candidate)
        if answer and answer[0] in PYTHONS:
            found.setdefault(*answer)
            if answer[0] == PYTHONS[0]:
                break
    return next((found[version] for version in PYTHONS if version in found), None)


def _candidates() -> Iterator[str]:
    """Give paths that may be a Python.

    `sys.executable` is not among them: inside QGIS on Windows and macOS it is QGIS, and starting it opens a window.
    """
    for name in (*(f"python{version}" for version in PYTHONS), "python3", "python"):
        path = shutil.which(name)
        if path and not ("WindowsApps" in path and sys.platform == "win32"):  # Microsoft Store's stub opens the store
            yield path
    yield from _installed_pythons(sys.platform)


def _installed_pythons(platform: str) -> Iterator[str]:
    """Give the usual places of each system, which a desktop program's PATH often lacks."""
    if platform == "win32":
        roots = [os.environ.get("LOCALAPPDATA", "") + r"\Programs\Python", os.environ.get("PROGRAMFILES", "")]
        for version in PYTHONS:
            yield from (rf"{root}\Python{version.replace('.', '')}\python.exe" for root in roots)
        yield from (os.path.join(sys.prefix, name) for name in ("python.exe", "python3.exe"))
        return
    if platform == "darwin":
        for version in PYTHONS:
            yield f"/opt/homebrew/bin/python{version}"
            yield f"/usr/local/bin/python{version}"
            yield f"/Library/Frameworks/Python.framework/Versions/{version}/bin/python{version}"
        yield os.path.join(sys.prefix, "bin", "python3")
        return
    yield from (f"/usr/bin/python{version}" for version in PYTHONS)


def _ask(candidate: str) -> tuple[str, str] | None:
    """Give a candidate's Python version and real path, or None if it is no 64-bit Python with venv and pip."""
    if not Path(candidate).is_file():
        return None
    try:
        answer = subprocess.run(  # nosec B603 - a list, no shell; a Python from a fixed list of places
            [candidate, "-I", "-X", "utf8", "-c", _WHO_ARE_YOU],
            env=child_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
            check=False,
            creationflags=NO_WINDOW,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    parts = answer.stdout.decode("utf-8", "replace").strip().split("|")
    if answer.returncode != 0 or len(parts) != 3 or parts[1] != "True":
        return None
    return parts[0], parts[2]
