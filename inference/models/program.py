"""The program of a package: which files it is made of, their common hash, and a private copy of just these files.

Consent is given to the content of a file set. `program_sha256` tells the hash that people consent to;
`extract_program` hashes what it copies, so what runs is byte for byte what the consent was given to, whatever happens
to the package meanwhile.

QGIS imports this module: it needs nothing but the standard library. Nothing of a package is run here.
"""

from __future__ import annotations

import errno
import hashlib
import io
import lzma
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Callable

from ..errors import DiskFullError, ModelPackageError, OutputError, UntrustedCodeError
from .definition import PROGRAM_KINDS

if TYPE_CHECKING:  # packages ask this module for their hash
    from .package import ModelPackage

MAX_FILES = 2000
MAX_TOTAL_BYTES = 8 * 2**30
DEFINITION_FILE = ".kestrel/definition.emd"
"""Name in the file set of a definition that has no file of its own there."""

_WEIGHTS_FOLDER = ".kestrel/weights/"
_LEFT_OUT = frozenset({"__pycache__", ".git"})
"""Folders that are neither hashed nor copied: what Python compiled need not be what the source beside it says."""
_BLOCK = 2**20
_SALT = b"kestrel program 2\0"  # no other hash of the same files is taken for this one
_READ_ERRORS = (
    OSError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError,
    EOFError,
)  # fmt: skip
_NO_ROOM = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}


@dataclass(frozen=True)
class ProgramFile:
    """One file of a program: its name, with forward slashes, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class _Entry:
    name: str
    size: int
    open: Callable[[], IO[bytes]]


def program_files(package: ModelPackage) -> list[ProgramFile]:
    """Give the file set of a package's program, sorted by name.

    TorchScript and an exported program are one file each, with the definition. A Python program may import and read
    whatever lies beside it: of an archive the set holds all members, of a loose definition all files below its folder,
    of a definition given as text all files below the program's folder.

    Raises:
        ModelPackageError: a file cannot be read, is a link, or has a name that no copy can have; or they are too many.
    """
    return [ProgramFile(entry.name, entry.size) for entry in _entries(package)]


def program_sha256(package: ModelPackage) -> str:
    """Give the hash of the file set, which a user consents to.

    Raises:
        ModelPackageError: as `program_files`.
    """
    hashes, budget = {}, _Budget()
    for entry in _entries(package):
        digest = hashlib.sha256()
        for block in _blocks(entry, budget):
            digest.update(block)
        hashes[entry.name] = digest.digest()
    return _joined(package, hashes)


def extract_program(package: ModelPackage, folder: Path, expected_sha256: str) -> Path:
    """Copy the file set into a folder that does not exist yet, readable by this user only.

    Args:
        package: The opened package.
        folder: Where the copy goes.
        expected_sha256: The hash that the user consented to.

    Returns:
        The folder.

    Raises:
        UntrustedCodeError: what was copied is not what the user consented to; the copy is gone.
        ModelPackageError: as `program_files`.
        DiskFullError, OutputError: the copy cannot be written.
    """
    entries, is_whole = _entries(package), False
    try:
        folder.mkdir(mode=0o700)
        found = _joined(package, _copy_all(entries, folder))
        if found != expected_sha256.strip().lower():
            raise untrusted(package, found, "is not the one that was allowed")
        is_whole = True
    except OSError as error:
        raise _write_error(error, folder) from error
    finally:
        if not is_whole:
            shutil.rmtree(folder, ignore_errors=True)
    return folder


def placed(package: ModelPackage, folder: Path, name: str) -> Path:
    """Give the place in the copy of a file that the definition names.

    Raises:
        ModelPackageError: the package holds no such file.
    """
    return folder / _name_in_set(package, name)


def untrusted(package: ModelPackage, sha256: str, reason: str = "has not been allowed to run") -> UntrustedCodeError:
    """Give the error for a program without consent, with the hash that would allow it."""
    return UntrustedCodeError(
        f"The model '{package.definition.name}' is a program ('{package.definition.program}'), and this exact program "
        f"{reason}.",
        hint="Run it only if you trust where it comes from: allow it in the dialog, or in scripts with "
        f"ALLOW_PACKAGE_CODE={sha256}.",
        sha256=sha256,
        program=package.definition.program,
    )


# -- Which files -------------------------------------------------------------------------------------------------------


def _entries(package: ModelPackage) -> list[_Entry]:
    from .package import is_safe_name  # here, because that module may import this one

    if package.definition.kind in PROGRAM_KINDS:
        entries = [_definition_entry(package), _member_entry(package, package.definition.program)]
    elif _folder_of(package) is not None:
        entries = _folder_entries(_folder_of(package) or Path(), package.root)
    elif package.members.names():
        names = [name for name in package.members.names() if not _LEFT_OUT & set(name.split("/"))]
        entries = [_member_entry(package, name, is_full=True) for name in names]
    else:
        entries = _text_entries(package)
    if len(entries) > MAX_FILES:
        raise _too_many()
    for entry in entries:
        if not is_safe_name(entry.name):
            raise ModelPackageError(
                f"The package holds a file with the unsafe name {entry.name!r}.", hint="Rename it or leave it out."
            )
    return sorted(entries, key=lambda entry: entry.name)


def _folder_of(package: ModelPackage) -> Path | None:
    """Give the folder of a loose definition; None for an archive and for a definition given as text."""
    folder: Path | None = getattr(package.members, "folder", None)
    return None if folder is None else folder / package.root


def _is_text(package: ModelPackage) -> bool:
    return _folder_of(package) is None and not package.members.names()


def _definition_entry(package: ModelPackage) -> _Entry:
    data = package.definition_bytes
    return _Entry(DEFINITION_FILE, len(data), lambda: io.BytesIO(data))


def _member_entry(package: ModelPackage, name: str, *, is_full: bool = False) -> _Entry:
    full = name if is_full else package.find(name)
    if _is_text(package):
        return _file_entry(Path(full), _name_in_set(package, name))
    info: Any = getattr(package.members, "entries", {}).get(full)
    folder: Path | None = getattr(package.members, "folder", None)
    if folder is not None:
        return _file_entry(folder / full, full)
    return _Entry(full, info.file_size if info else 0, lambda: package.members.open(full))


def _file_entry(path: Path, name: str) -> _Entry:
    try:
        return _Entry(name, path.stat().st_size, lambda: path.open("rb"))
    except OSError as error:
        raise _read_error(name, error) from error


def _text_entries(package: ModelPackage) -> list[_Entry]:
    """Give what a definition given as text is made of: itself, what lies around its program, and its weights."""
    program = Path(package.find(package.definition.program))
    entries = [_definition_entry(package), *_folder_entries(program.parent, "")]
    weights = package.definition.weights
    if weights and _name_in_set(package, weights) not in {entry.name for entry in entries}:
        entries.append(_file_entry(Path(package.find(weights)), _name_in_set(package, weights)))
    return entries


def _name_in_set(package: ModelPackage, name: str) -> str:
    full = package.find(name)
    if not _is_text(package):
        return full
    program = Path(package.find(package.definition.program))
    with_folder = Path(full)
    if program.parent in with_folder.parents:
        return with_folder.relative_to(program.parent).as_posix()
    return _WEIGHTS_FOLDER + with_folder.name


def _folder_entries(folder: Path, prefix: str) -> list[_Entry]:
    """Give all files below a folder; links are refused, because where they lead to can change."""
    entries: list[_Entry] = []
    waiting = [(folder, prefix)]
    n_seen = 0
    while waiting:
        place, name = waiting.pop()
        for item in _listed(place):
            n_seen += 1
            if len(entries) >= MAX_FILES or n_seen > 2 * MAX_FILES:
                raise _too_many()
            if item.name in _LEFT_OUT:
                continue
            if item.is_symlink() or not (item.is_file() or item.is_dir()):
                raise ModelPackageError(
                    f"'{name + item.name}' in the folder of the model is a link or device, not a file.",
                    hint="Copy the package's files into a folder of their own.",
                )
            if item.is_dir():
                waiting.append((Path(item.path), f"{name}{item.name}/"))
            else:
                entries.append(_file_entry(Path(item.path), name + item.name))
    return entries


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    found = []
    try:
        with os.scandir(folder) as items:
            for item in items:
                found.append(item)
                if len(found) > 2 * MAX_FILES:
                    raise _too_many()
    except OSError as error:
        raise _read_error(str(folder), error) from error
    return found


def _too_many() -> ModelPackageError:
    return ModelPackageError(
        f"The folder of the model holds more than {MAX_FILES} files, and all of them would belong to its program.",
        hint="Put the package's files into a folder of their own.",
    )


# -- Hash and copy -----------------------------------------------------------------------------------------------------


class _Budget:
    """Counts the bytes of all files together."""

    def __init__(self) -> None:
        """Start at nothing."""
        self._n_bytes = 0

    def spend(self, n_bytes: int) -> None:
        """Count some bytes more.

        Raises:
            ModelPackageError: they are too many.
        """
        self._n_bytes += n_bytes
        if self._n_bytes > MAX_TOTAL_BYTES:
            raise ModelPackageError("The files of the package's program are larger than 8 GB together.")


def _joined(package: ModelPackage, hashes: Mapping[str, bytes]) -> str:
    """Give one hash over the files and over what says which of them is the program: a folder may hold several."""
    digest = hashlib.sha256(_SALT)
    for part in (package.definition.kind, package.root, package.definition.program):
        digest.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
    digest.update(hashlib.sha256(package.definition_bytes).digest())
    for name in sorted(hashes):
        digest.update(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest() + hashes[name])
    return digest.hexdigest()


def _copy_all(entries: list[_Entry], folder: Path) -> dict[str, bytes]:
    hashes, budget = {}, _Budget()
    for entry in entries:
        target = folder / entry.name
        _make_folders(folder, target.parent)
        digest = hashlib.sha256()
        with target.open("xb") as sink:
            for block in _blocks(entry, budget):
                digest.update(block)
                sink.write(block)
        hashes[entry.name] = digest.digest()
    return hashes


def _make_folders(top: Path, folder: Path) -> None:
    missing = [place for place in (folder, *folder.parents) if top in place.parents and not place.is_dir()]
    for place in reversed(missing):
        place.mkdir(mode=0o700)


def _blocks(entry: _Entry, budget: _Budget) -> Iterator[bytes]:
    with _reading(entry.name):
        stream = entry.open()
    with stream:
        while True:
            with _reading(entry.name):
                block = stream.read(_BLOCK)
            if not block:
                return
            budget.spend(len(block))
            yield block


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except _READ_ERRORS as error:
        raise _read_error(name, error) from error


def _read_error(name: str, error: Exception) -> ModelPackageError:
    return ModelPackageError(
        f"The package's file '{name}' cannot be read: {getattr(error, 'strerror', None) or error}.",
        hint="Copy or download the package again.",
    )


def _write_error(error: OSError, folder: Path) -> OutputError:
    if error.errno in _NO_ROOM:
        return DiskFullError(f"The disk of {folder} is full.", hint="Make room, then start again.")
    return OutputError(f"The package's program cannot be copied to {folder}: {error.strerror or error}.")
