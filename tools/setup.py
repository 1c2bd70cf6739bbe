"""Makes everything under build/ that the other targets need, and nothing that is there already.

    build/plugins/kestrel   link to the repository: `kestrel.*` is importable with build/plugins on sys.path
    build/env/uv            uv, the tool that makes environments (left out where one is on PATH)
    build/env/inference     the inference environment, what the tests of inference/ and the training add to it, and
                            TensorFlow and transformers, which users install on request
    build/env/qgis          QGIS's own Python, and the linters and test tools
    build/profile           a QGIS profile of its own, with the plugin enabled

Runs with any Python from 3.9 on and needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
REQUIREMENTS = ROOT / "requirements"
INFERENCE = BUILD / "env" / "inference"
PARTS = ("inference", "extras", "dev", "profile")
LOCKS = {
    "inference": "3.11", "tensorflow": "3.11", "transformers": "3.11", "core-test": "3.11", "exporters": "3.11",
    "training": "3.11", "dev": "3.9", "uv": "3.9",
}  # fmt: skip
"""Requirement files, in the order that they build on each other, and the oldest Python that each one serves."""


def main() -> int:
    """Make the parts named on the command line, in the order that they need each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)} (all when left out), or lock")
    parser.add_argument(
        "--qgis-python", default="/usr/bin/python3", help="the Python that QGIS's bindings are made for"
    )
    parser.add_argument("--torch-backend", default="", help="auto, cpu, cu128, ...: torch from PyTorch's own index")
    options = parser.parse_args()
    unknown = set(options.parts) - {*PARTS, "lock"}
    if unknown:
        parser.error(f"unknown part: {', '.join(sorted(unknown))}")
    parts = options.parts or PARTS
    make_link(BUILD / "plugins" / "kestrel", ROOT)
    if "inference" in parts:
        make_inference_environment(options.torch_backend)
    if "extras" in parts:
        for name in ("tensorflow", "transformers", "exporters"):
            install(str(INFERENCE / "bin" / "python"), INFERENCE, REQUIREMENTS / f"{name}.txt")
    if "dev" in parts:
        make_dev_environment(options.qgis_python)
    if "profile" in parts:
        make_profile(options.qgis_python)
    if "lock" in parts:
        lock()
    return 0


def make_link(link: Path, target: Path) -> None:
    """Let `link` point to `target`, relatively, so that a moved checkout stays whole."""
    relative = os.path.relpath(target, link.parent)
    if link.is_symlink() and link.readlink() == Path(relative):
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(relative, target_is_directory=True)


def find_uv() -> str:
    """Give the path of uv: the one on PATH, or else one of the locked version, made here."""
    on_path = shutil.which("uv")
    if on_path:
        return on_path
    home = BUILD / "env" / "uv"
    uv, stamp = home / "bin" / "uv", home / "requirements.sha256"
    wanted = digest(REQUIREMENTS / "uv.txt")
    if uv.exists() and read(stamp) == wanted:
        return str(uv)
    tell("Installing uv")
    # Some systems' own Python has no pip: the first one that can make an environment with it will do.
    for python in dict.fromkeys((sys.executable, shutil.which("python3") or sys.executable)):
        shutil.rmtree(home, ignore_errors=True)
        if subprocess.run([python, "-m", "venv", str(home)], check=False).returncode == 0:
            break
    else:
        sys.exit("No Python with venv and pip was found. On Debian and Ubuntu: apt-get install python3-venv")
    pip = (str(home / "bin" / "python"), "-m", "pip", "install", "-q")
    run(*pip, "--require-hashes", "-r", str(REQUIREMENTS / "uv.txt"))
    stamp.write_text(wanted)
    return str(uv)


def make_inference_environment(torch_backend: str) -> None:
    """Make the inference environment just as the plugin does for its users, and add what tests and training need."""
    sys.path.insert(0, str(BUILD / "plugins"))
    from kestrel.inference.worker.managed import create_environment, ready_interpreter

    locked = REQUIREMENTS / "inference.txt"
    backend = torch_backend or recorded_backend()
    interpreter = ready_interpreter(INFERENCE, locked, backend)
    if interpreter is None:
        tell("Making the inference environment (torch with CUDA: about 3 GB to download, once)")
        interpreter = create_environment(
            INFERENCE, locked, None, print, lambda: False, uv=find_uv(), torch_backend=backend
        )
        (BUILD / "env" / "torch-backend").write_text(backend)
    install(interpreter, INFERENCE, REQUIREMENTS / "core-test.txt", REQUIREMENTS / "training.txt")


def recorded_backend() -> str:
    """Give the torch backend of the environment that is there, which `make test` must not undo."""
    return read(BUILD / "env" / "torch-backend")


def make_dev_environment(qgis_python: str) -> None:
    """Make an environment over QGIS's Python: it sees `qgis`, and holds the linters and pytest."""
    home = BUILD / "env" / "qgis"
    if not (home / "bin" / "python").exists():
        tell("Making the development environment")
        how = ("-q", "--no-project", "--clear", "--system-site-packages", "--python", qgis_python)
        run(find_uv(), "venv", *how, str(home))
    install(str(home / "bin" / "python"), home, REQUIREMENTS / "dev.txt")


def make_profile(qgis_python: str) -> None:
    """Make the QGIS profile that `make run`, the demo and tools/qgis_process.sh use."""
    profile = BUILD / "profile"
    interpreter = INFERENCE / "bin" / "python"
    stamp, wanted = profile / "made-for.txt", f"{ROOT}\n{interpreter}\n{digest(ROOT / 'tools' / 'make_profile.py')}"
    if read(stamp) == wanted:
        return
    tell("Making the QGIS profile")
    run(qgis_python, str(ROOT / "tools" / "make_profile.py"), str(profile), str(ROOT), str(interpreter))
    stamp.write_text(wanted)


def lock() -> None:
    """Resolve each requirements/*.in again, for all systems, with hashes."""
    for name, python in LOCKS.items():
        source, locked = REQUIREMENTS / f"{name}.in", REQUIREMENTS / f"{name}.txt"
        how = ("--universal", "--generate-hashes", "--no-header", "--no-annotate", "--upgrade", "-q")
        run(find_uv(), "pip", "compile", *how, "--python-version", python, str(source), "-o", str(locked))


def install(interpreter: str | None, environment: Path, *locked: Path) -> None:
    """Install locked requirements into an environment, unless they were already."""
    stamp, wanted = environment / f"{locked[0].stem}.sha256", digest(*locked)
    if read(stamp) == wanted:
        return
    tell(f"Installing {' and '.join(path.name for path in locked)}")
    files = [argument for path in locked for argument in ("-r", str(path))]
    run(find_uv(), "pip", "install", "-q", "--python", str(interpreter), "--require-hashes", *files)
    stamp.write_text(wanted)


def digest(*files: Path) -> str:
    """Give one SHA-256 over the files' contents."""
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def read(path: Path) -> str:
    """Give a small file's text, empty when there is none."""
    return path.read_text() if path.exists() else ""


def run(*command: str) -> None:
    """Run a command; leave with its exit code when it fails."""
    # uv looks for a project's configuration in the current folder: it must not take ours for its own.
    code = subprocess.run(command, cwd=BUILD, check=False).returncode
    if code != 0:
        sys.exit(f"{' '.join(command[:4])} ... failed with code {code}")


def tell(text: str) -> None:
    """Say what is being made, before the tool that makes it says anything."""
    print(f"-- {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
