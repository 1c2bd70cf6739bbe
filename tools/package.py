"""Makes the plugin's zip, build/kestrel-<version>.zip, from the last commit (or from the files as they are).

What goes in is decided in .gitattributes (export-ignore). Translations are compiled here: git keeps only their source.
"""

from __future__ import annotations

import argparse
import configparser
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"


def main() -> int:
    """Make the zip and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worktree", action="store_true", help="take the files as they are, not the last commit")
    parser.add_argument("--output", type=Path, help="path of the zip")
    options = parser.parse_args()
    path = make_package(options.output, options.worktree)
    print(f"{os.path.relpath(path)} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def make_package(output: Path | None = None, is_worktree: bool = False) -> Path:
    """Make the zip.

    Args:
        output: Its path; None puts it in build/ with the version in its name.
        is_worktree: Take the files as they are, committed or not, instead of the last commit.

    Returns:
        The path of the zip.
    """
    with tempfile.TemporaryDirectory() as scratch:
        environment = dict(os.environ)
        tree = "HEAD"
        if is_worktree:
            environment.update(_scratch_index(Path(scratch)))
            _git("add", "--all", environment=environment)
            tree = _git("write-tree", environment=environment).strip()
        metadata = configparser.ConfigParser()
        metadata.read_string(_git("show", f"{tree}:metadata.txt", environment=environment))
        output = output or BUILD / f"kestrel-{metadata['general']['version']}.zip"
        output.parent.mkdir(parents=True, exist_ok=True)
        _git("archive", "--format=zip", "--prefix=kestrel/", "-o", str(output.resolve()), tree, environment=environment)
        _add_translations(output, Path(scratch))
    return output


def _scratch_index(scratch: Path) -> dict[str, str]:
    """Give the variables with which git makes a tree of the files and leaves the repository's index and objects be."""
    objects = scratch / "objects"
    objects.mkdir()
    return {
        "GIT_INDEX_FILE": str(scratch / "index"),
        "GIT_OBJECT_DIRECTORY": str(objects),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str((ROOT / _git("rev-parse", "--git-path", "objects").strip()).resolve()),
    }


def _git(*arguments: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _add_translations(package: Path, scratch: Path) -> None:
    """Compile each translation source in the zip, and put the result beside it."""
    with zipfile.ZipFile(package, "a", zipfile.ZIP_DEFLATED) as archive:
        for source in [name for name in archive.namelist() if name.endswith(".ts")]:
            lrelease = shutil.which("lrelease") or sys.exit("lrelease is missing: run `make setup`")
            compiled = scratch / "compiled.qm"
            (scratch / "source.ts").write_bytes(archive.read(source))
            subprocess.run([lrelease, "-silent", str(scratch / "source.ts"), "-qm", str(compiled)], check=True)
            archive.write(compiled, source[:-3] + ".qm")


if __name__ == "__main__":
    sys.exit(main())
