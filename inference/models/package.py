"""Model packages: open a .dlpk, .zip, folder, .emd, .json or the definition's text, safely, and hand out its members.

A package is data from a stranger. Nothing is unpacked wholesale: members are looked at in the directory of the
archive, refused where they are odd, and copied one by one to names that we choose. Nothing in a package is executed
here; a package's program is copied out by program.py, for the consent that was given to its exact content.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import lzma
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Protocol

from ..errors import DiskFullError, ModelHashError, ModelPackageError, OutputError
from . import carriers, program
from .definition import SCHEMA_KEY, ModelDefinition, definition_from_json
from .emd_text import EmdText, read_emd, read_json
from .esri import definition_from_emd
from .stack_machine import MalformedError
from .stored_zip import end_of_directory
from .strict_json import MAX_JSON_BYTES

MAX_MEMBERS = 1000
_MAX_DIRECTORY_BYTES = 2**20  # a kilobyte for each: names, dates, rights
MAX_TOTAL_BYTES = 8 * 2**30
MAX_RATIO = 1100  # deflate reaches 1032 : 1 at most; more is a lie in the directory
_MAX_LISTED = 5000  # files of a folder that a loose definition lies in
_LOCAL_HEADER_BYTES = 30  # the fixed part
_BLOCK = 2**20
_LOCATION = re.compile(rb"\x0a\x08location\x12(?:([\x00-\x7f])|([\x80-\xff])\x01)", re.DOTALL)
"""Start of an ONNX graph's entry `location: name`, with the length of a name of at most 255 bytes."""
_LOCATION_BYTES = 300  # more than such an entry has
_PACKAGES = (".dlpk", ".zip")
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    device + digit for device in ("COM", "LPT") for digit in "0123456789¹²³"
}
"""Names that Windows opens as devices, whatever follows the first dot."""
_FOREIGN = (
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"), (b"Rar!\x1a\x07", "a RAR archive"), (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"), (b"\xfd7zXZ\x00", "an xz archive"), (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"PK\x07\x08", "one part of a zip archive that was split"), (b"\x89HDF\r\n", "an HDF5 file"),
    (b"MZ", "a program for Windows"), (b"%PDF", "a PDF document"),
)  # fmt: skip
"""How files begin that people take for packages, and what they are."""
_TAR = slice(257, 262)
_START_BYTES = 512
_MAX_TEXTS, _KEY_WITHIN = 20, 2**16  # of a folder, what is looked into for a definition
_CLUTTER = ("esriinfo/", "__macosx/")  # folders of packing programs, in lower case
_INFO_STARTS = ("license", "licence", "copying", "notice", "terms", "readme", "thumbnail")
_INFO_FOLDERS = ("esriinfo/", "modelcharacteristics/")
_INFO_NAMES = ("model_metrics.html", "metrics.html", "iteminfo.xml")
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, struct.error, NotImplementedError,
    RuntimeError, EOFError, ValueError, OverflowError,
)  # fmt: skip


_BROKEN = (
    OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError,
)  # fmt: skip
"""What reading a file from a stranger may end in where nobody thought of what stands in it."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How members may be packed: of others zipfile unpacks a whole member at once, however large."""


class Members(Protocol):
    """Where the files of a package are."""

    def names(self) -> list[str]:
        """Give the members' names, with forward slashes."""
        ...

    def has(self, name: str) -> bool:
        """Tell whether there is a member of that name."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """Open one member for reading."""
        ...


@dataclass(frozen=True)
class ZipMembers:
    """Members of a zip archive that `_checked_entries` has looked through."""

    path: Path
    entries: Mapping[str, zipfile.ZipInfo]

    def names(self) -> list[str]:
        """Give the members' names."""
        return list(self.entries)

    def has(self, name: str) -> bool:
        """Tell whether there is a member of that name."""
        return name in self.entries

    def open(self, name: str) -> IO[bytes]:
        """Open one member; reading on after the archive object is gone is safe, it shares the file."""
        return zipfile.ZipFile(self.path).open(self.entries[name])


@dataclass(frozen=True)
class FolderMembers:
    """Files beside a loose definition file."""

    folder: Path

    def names(self) -> list[str]:
        """Give the files' names relative to the folder.

        Only down to one folder below, and a SavedModel's variables: it may be a home folder with millions.
        """
        names: list[str] = []
        for name in _listed(self.folder):
            names.extend([name] if _is_file(self.folder / name) else _listed(self.folder, name))
        variables = [name.rpartition("/")[0] + "/variables" for name in names if name.endswith("/saved_model.pb")]
        inside = [inner for folder in variables for inner in _listed(self.folder, folder)]
        return sorted(name for name in {*names, *inside} if _is_file(self.folder / name))[:_MAX_LISTED]

    def has(self, name: str) -> bool:
        """Tell whether there is a file of that name, however deep, without a look at all the others."""
        return _is_file(self.folder / name)

    def open(self, name: str) -> IO[bytes]:
        """Open one file."""
        return (self.folder / name).open("rb")


@dataclass(frozen=True)
class NoMembers:
    """A definition given as text: its weights are named by an absolute path."""

    def names(self) -> list[str]:
        """Give no names."""
        return []

    def has(self, name: str) -> bool:
        """Tell whether there is a file of that absolute path."""
        return Path(name).is_absolute() and _is_file(Path(name))

    def open(self, name: str) -> IO[bytes]:
        """Open the file of that absolute path."""
        return Path(name).open("rb")


def _listed(folder: Path, below: str = "") -> list[str]:
    """Give the names in a folder, as many as a package may have; nothing where it cannot be read."""
    names: list[str] = []
    try:
        with os.scandir(folder / below) as items:
            for item in items:
                names.append(f"{below}/{item.name}" if below else item.name)
                if len(names) >= _MAX_LISTED:
                    break
    except OSError:
        return names
    return names


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a zero
        return False


@dataclass(frozen=True)
class ModelPackage:
    """An opened package: what it says, and where its files are."""

    definition: ModelDefinition
    members: Members
    root: str
    """Folder of the definition inside the package, "" or ending in a slash; member names count from here."""
    definition_bytes: bytes

    def weights_member(self) -> str:
        """Give the full name of the member with the weights.

        Raises:
            ModelPackageError: there is none of that name.
        """
        return self.find(self.definition.weights)

    def find(self, name: str) -> str:
        """Give the full name of a member that the definition names.

        Raises:
            ModelPackageError: there is none of that name, or the name leads out of the package.
        """
        if isinstance(self.members, NoMembers):
            return self._absolute(name)
        plain = name.replace("\\", "/")
        while plain.startswith("./"):
            plain = plain[2:]
        if not is_safe_name(plain):
            raise ModelPackageError(f"The model definition names the file '{name}', which lies outside the package.")
        full = self.root + plain
        if not self.members.has(full):
            present = ", ".join(sorted(n for n in self.members.names() if not n.endswith(".py"))[:8])
            raise ModelPackageError(
                f"The model definition names the file '{name}', but the package does not hold it.",
                hint=f"It holds: {present}." if present else "It holds nothing else.",
            )
        return full

    def beside_weights(self, name: str) -> str:
        """Give the full name of a member in the folder of the weights, as an ONNX graph names its external data.

        Raises:
            ModelPackageError: there is none of that name.
        """
        folder, slash, _ = self.definition.weights.replace("\\", "/").rpartition("/")
        return self.find(folder + slash + name)

    def regular_file(self, name: str) -> str:
        """Give the full name of a member back, unless a link beside a loose definition hides behind it.

        Raises:
            ModelPackageError: it is a link, which may lead to a private file, or has another name elsewhere.
        """
        folder: Path | None = getattr(self.members, "folder", None)
        if folder is None:
            return name
        place = folder / name
        if place.is_symlink() or place.stat().st_nlink > 1:
            raise ModelPackageError(
                f"The file '{name}' beside the model is a link to another place, and is not read as its weights.",
                hint="Put a copy of the file there.",
            )
        return name

    def extract(self, name: str, target: Path) -> Path:
        """Copy the member `find` gave to the file `target`, and give `target` back.

        Raises:
            ModelPackageError: the member cannot be read.
            DiskFullError, OutputError: the file cannot be written.
        """
        try:
            with target.open("xb") as sink:
                for block in self._blocks(name):
                    sink.write(block)
        except OSError as error:
            if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
                raise DiskFullError(
                    f"The disk of {target.parent} is full.", hint="Make room, then start again."
                ) from error
            raise OutputError(f"The file {target} cannot be written: {error.strerror or error}.") from error
        return target

    def sha256(self, known_program: str = "") -> str:
        """Give the hash of what decides the result: the definition, the weights, and the files that belong to them.

        Of an archive these are all members except programs; beside a loose definition lies anything, so there they are
        the files that the definition or an ONNX graph names, and what lies in the folder of a SavedModel. Of a model
        that is a program it is the whole file set of that program.

        Args:
            known_program: The hash of the program, where it is known already.

        Raises:
            ModelPackageError: the files cannot be read.
            ModelHashError: the weights are not those that the definition was written for.
        """
        if self.definition.program:
            self._check_weights()
            own = known_program or program.program_sha256(self)
            return hashlib.sha256(self.definition_bytes + bytes.fromhex(own)).hexdigest()
        weights = self.weights_member()
        content, locations = self._weights_hash(weights)
        self._check_hash(weights, content)
        hashes = {weights: content}
        is_archive = isinstance(self.members, ZipMembers)
        named = [self.beside_weights(name) for name in self.definition.options.get("files", ())]
        others = self._archived() if is_archive else [*self._present(locations), *self._saved_model(weights), *named]
        for name in others:
            if name not in hashes:
                hashes[name] = self._member_hash(name)
        digest = hashlib.sha256(hashlib.sha256(self.definition_bytes).digest())
        for name in sorted(hashes):
            digest.update(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest() + hashes[name])
        return digest.hexdigest()

    def hashed_locations(self) -> set[str]:
        """Give the names of external data that the hash of a loose ONNX graph covers."""
        return self._weights_hash(self.weights_member())[1]

    def info_files(self) -> list[str]:
        """Give the full names of the members that are for people: licence, metrics, thumbnails, notes."""
        is_archive = isinstance(self.members, ZipMembers)
        return [name for name in self.members.names() if _is_info(name[len(self.root) :], name, is_archive=is_archive)]

    def read_bytes(self, name: str, max_bytes: int) -> bytes:
        """Give at most so many bytes of a member, by its full name.

        Raises:
            ModelPackageError: there is none of that name, or it cannot be read.
        """
        if not self.members.has(name) or not (isinstance(self.members, NoMembers) or is_safe_name(name)):
            raise ModelPackageError(f"The package does not hold the file '{name}'.")
        with _as_package_error(name), self.members.open(name) as stream:
            return stream.read(max_bytes)

    def read_text(self, name: str, max_bytes: int = 2**18) -> str:
        """Give the beginning of a member that is a text, by its full name; it may hold anything, HTML too.

        Raises:
            ModelPackageError: there is none of that name, or it cannot be read.
        """
        data = self.read_bytes(name, max_bytes)
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return data.decode("utf-16", "replace")
        try:
            return codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=len(data) < max_bytes)
        except UnicodeDecodeError:
            return data.decode("cp1252", "replace")

    def _archived(self) -> list[str]:
        return [name for name in self.members.names() if not name.lower().endswith(".py")]

    def _saved_model(self, weights: str) -> list[str]:
        """Give the files that belong to TensorFlow's saved_model.pb: the numbers lie beside it."""
        folder, slash, name = weights.replace("\\", "/").rpartition("/")
        if name != "saved_model.pb":
            return []
        parts = tuple(folder + slash + part for part in ("variables/", "assets/"))
        return [member for member in self.members.names() if member.startswith(parts)]

    def _present(self, locations: set[str]) -> list[str]:
        folder, slash, _ = self.weights_member().replace("\\", "/").rpartition("/")
        names = [folder + slash + location for location in locations if is_safe_name(location) and "/" not in location]
        return [name for name in names if self.members.has(name)]

    def _member_hash(self, name: str) -> bytes:
        digest = hashlib.sha256()
        for block in self._blocks(name):
            digest.update(block)
        return digest.digest()

    def _weights_hash(self, name: str) -> tuple[bytes, set[str]]:
        """Give the hash of the weights, and the names of external data in what may be an ONNX graph."""
        digest, locations, end = hashlib.sha256(), set(), b""
        for block in self._blocks(name):
            digest.update(block)
            if self.definition.kind == "onnx":
                locations |= _external_locations(end + block)
                end = (end + block)[-_LOCATION_BYTES:]
        return digest.digest(), locations

    def _check_weights(self) -> None:
        if self.definition.weights_sha256 and self.definition.weights:
            weights = self.weights_member()
            self._check_hash(weights, self._member_hash(weights))

    def _check_hash(self, weights: str, content: bytes) -> None:
        stated = self.definition.weights_sha256
        if stated not in ("", content.hex()):
            raise ModelHashError(
                f"The file '{weights}' is not the one that the model's definition was written for: its SHA-256 is "
                f"{content.hex()}, and {stated} is stated.",
                hint="Copy or download it again, or get the definition of this version.",
            )

    def _absolute(self, name: str) -> str:
        if not self.members.has(name):
            raise ModelPackageError(
                f"The model definition names the file '{name}', which is not the absolute path of a file.",
                hint="A definition given as text has no folder of its own: write the whole path of the weights.",
            )
        return str(Path(name))

    def _blocks(self, name: str) -> Iterator[bytes]:
        n_bytes = 0
        with _as_package_error(name), self.members.open(name) as stream:
            while block := stream.read(_BLOCK):
                if n_bytes == 0:
                    _refuse_pointer(block, name)
                n_bytes += len(block)
                if n_bytes > MAX_TOTAL_BYTES:
                    raise ModelPackageError(f"The package's member '{name}' is larger than 8 GB.")
                yield block


def _is_info(name: str, full: str, *, is_archive: bool) -> bool:
    lower, base = name.lower(), name.lower().rpartition("/")[2]
    is_text = is_archive and base.endswith((".txt", ".md")) and lower.count("/") == 0
    is_named = base.startswith(_INFO_STARTS) or base in _INFO_NAMES
    return is_text or (is_named and lower.count("/") <= 1) or full.lower().startswith(_INFO_FOLDERS) or (
        lower.startswith(_INFO_FOLDERS)
    )  # fmt: skip


def _refuse_pointer(start: bytes, name: str) -> None:
    if start.startswith(b"version https://git-lfs"):
        raise ModelPackageError(
            f"The model file '{name}' is a Git LFS pointer, not the model itself.", hint="Fetch it with 'git lfs pull'."
        )


def _refuse_foreign(start: bytes, name: str) -> None:
    """Refuse by name what people take for a package, by the file's first bytes.

    Raises:
        ModelPackageError: it is something else.
    """
    _refuse_pointer(start, name)
    kind = next((kind for magic, kind in _FOREIGN if start.startswith(magic)), "")
    kind = kind or ("a tar archive" if start[_TAR] == b"ustar" else "")
    if kind:
        raise ModelPackageError(
            f"The file '{name}' is {kind}, not a model package.",
            hint="Unpack it and choose the .emd in it, or pack its files as a zip archive.",
        )
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<!doctype")):
        raise ModelPackageError(
            f"The file '{name}' is a web page, not the model.",
            hint="The server sent a page instead of the file: sign in there, and download the package again.",
        )
    if text.startswith((b'{"error"', b"{'error'", b'{ "error"')):
        raise ModelPackageError(
            f"The file '{name}' holds the error message of a server, not the model.",
            hint="Sign in at the portal, and download the package again.",
        )


def _external_locations(data: bytes) -> set[str]:
    """Give the file names that stand in a piece of an ONNX graph as the places of external data."""
    names = set()
    for match in _LOCATION.finditer(data):
        short, long = match.groups()
        name = data[match.end() : match.end() + (short or long)[0]]
        if len(name) == (short or long)[0]:
            names.add(name.decode("utf-8", "replace"))
    return names


def is_safe_name(name: str) -> bool:
    """Tell whether a member name is a plain file inside the package, on every operating system."""
    is_plain = not any(ord(character) < 32 or character in '\\:*?"<>|' for character in name)
    return is_plain and all(_is_safe_part(part) for part in name.split("/"))


def _is_safe_part(part: str) -> bool:
    """Tell whether a name is kept by Windows: it drops dots and spaces at the end, and takes some names for devices."""
    is_kept = part != "" and part[-1] not in ". "
    return is_kept and part.split(".")[0].rstrip(" ").upper() not in _DEVICES


def open_package(reference: str) -> ModelPackage:
    """Open a model package.

    Args:
        reference: Path of a .dlpk, .zip, .emd or .json file, or of a folder that holds one definition; or the text of
            a definition in JSON.

    Raises:
        ModelPackageError: no such file, not a package, or a package with something odd in it.
        ModelUnsupportedError: a model of a kind that Kestrel does not run.
        ModelIncompatibleError: parts of the definition that do not fit together.
    """
    found = locate_definition(reference)
    try:
        return _open_definition(found)
    except _BROKEN as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelPackageError(f"The model definition {found.where} cannot be read: {reason}.") from error


@dataclass(frozen=True)
class LocatedDefinition:
    """A definition that is not yet understood.

    Attributes:
        data: Its bytes.
        where: Where it stands, for messages.
        members: The files beside it.
        root: The folder in these that it stands in, with a slash at the end; may be empty.
        stem: Its file's name without extension.
        notes: What was assumed where it was translated from a file that is no definition.
    """

    data: bytes
    where: str
    members: Members
    root: str
    stem: str
    notes: tuple[str, ...] = ()


def locate_definition(reference: str) -> LocatedDefinition:
    """Find the definition that a reference means, see `open_package`.

    Raises:
        ModelPackageError: no such file, not a package, or a package with something odd in it.
    """
    reference = reference.strip().lstrip("\ufeff")
    if not reference:
        raise ModelPackageError("No model was given.", hint="Choose a .dlpk, .emd or .json file.")
    if reference.startswith("{"):
        return LocatedDefinition(reference.encode("utf-8", "surrogatepass"), "given as text", NoMembers(), "", "")
    try:
        return _locate_in_file(Path(reference).expanduser())
    except _BROKEN as error:  # a home that expanduser does not find; a zero in the name
        reason = getattr(error, "strerror", None) or error
        raise ModelPackageError(f"The model file '{reference[:200]}' cannot be read: {reason}.") from error


def _locate_in_file(path: Path) -> LocatedDefinition:
    if path.is_dir():
        return _locate_in_folder(path)
    if not path.is_file():
        raise ModelPackageError(
            f"The model file '{path}' does not exist.", hint="Check the path; a network drive may be disconnected."
        )
    with path.open("rb") as stream:
        start = stream.read(_START_BYTES)
    suffix = path.suffix.lower()
    is_archive = start.startswith((b"PK\x03\x04", b"PK\x05\x06"))
    if is_archive and suffix in _PACKAGES:
        return _locate_in_archive(path)
    if suffix not in (".emd", ".json"):
        carried = carriers.translate(path)
        if carried is not None:
            return _carried(carried, path, path.parent)
    if is_archive and suffix not in (".pth", ".pt"):
        return _locate_in_archive(path)
    _refuse_foreign(start, path.name)
    if suffix in (".emd", ".json"):
        return _locate_in_text(path)
    raise ModelPackageError(
        f"The file '{path.name}' is not a model package{'' if start else ': it is empty'}.",
        hint="Kestrel opens .dlpk packages, .emd or .json definitions that lie beside their weights, and some weights "
        "by themselves. Describe others with a definition, see docs/definition.md."
        if start
        else "Copy or download it again.",
    )


def _locate_in_folder(path: Path) -> LocatedDefinition:
    try:
        name = _definition_in_folder(path)
    except ModelPackageError:
        carried = carriers.translate(path)
        if carried is None:
            raise
        return _carried(carried, path, path)
    return _locate_in_file(path / name)


def _locate_in_text(path: Path) -> LocatedDefinition:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelPackageError(f"The model definition '{path.name}' is larger than 4 MB; that is no definition.")
    data = path.read_bytes()
    carried = None
    if path.suffix.lower() == ".json" and SCHEMA_KEY.encode() not in data:
        carried = carriers.translate(path)
    if carried is not None:
        return _carried(carried, path, path.parent)
    return LocatedDefinition(data, f"'{path.name}'", FolderMembers(path.parent), "", path.stem)


def _carried(translation: carriers.Translation, path: Path, folder: Path) -> LocatedDefinition:
    content, notes = translation
    data = carriers.as_bytes(content)
    return LocatedDefinition(data, f"of '{path.name}'", FolderMembers(folder), "", path.stem, notes)


def _locate_in_archive(path: Path) -> LocatedDefinition:
    _check_directory(path)
    with _as_package_error(path.name), zipfile.ZipFile(path) as archive:
        entries = _checked_entries(archive)
    members = ZipMembers(path, entries)
    name = _definition_member(members.names(), f"The package '{path.name}'")
    with _as_package_error(path.name), members.open(name) as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ModelPackageError(f"The definition '{name}' is larger than 4 MB; that is no definition.")
    _refuse_foreign(data[:_START_BYTES], name)
    root = name[: name.rfind("/") + 1]
    return LocatedDefinition(data, f"'{name}' in '{path.name}'", members, root, Path(name).stem)


def _check_directory(path: Path) -> None:
    """Refuse a directory that is too long before zipfile reads it, which takes many times its bytes."""
    try:
        with _as_package_error(path.name), path.open("rb") as stream:
            n_entries, n_bytes, _ = end_of_directory(stream, path.stat().st_size)
    except MalformedError as error:
        raise ModelPackageError(
            f"The package '{path.name}' is damaged: {error}.", hint="Copy or download it again."
        ) from error
    if n_bytes > _MAX_DIRECTORY_BYTES:
        raise ModelPackageError(f"The package has {n_entries} members; more than {MAX_MEMBERS} are not opened.")


@contextmanager
def _as_package_error(name: str) -> Iterator[None]:
    try:
        yield
    except _ARCHIVE_ERRORS as error:
        raise ModelPackageError(
            f"The package '{name}' is damaged: {error}.", hint="Copy or download it again."
        ) from error
    except OSError as error:
        raise ModelPackageError(f"The model file '{name}' cannot be read: {error.strerror or error}.") from error


def _checked_entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise ModelPackageError(f"The package has {len(infos)} members; more than {MAX_MEMBERS} are not opened.")
    entries: dict[str, zipfile.ZipInfo] = {}
    taken: set[str] = set()
    for info in infos:
        name = info.filename.replace("\\", "/")
        if name.endswith("/"):
            continue
        _check_entry(info, name)
        key = _same_everywhere(name)
        if key in taken:
            raise ModelPackageError(f"The package holds the member '{name}' twice; it is not clear which one counts.")
        taken.add(key)
        entries[name] = info
    _check_folders(entries, taken)
    if sum(info.file_size for info in entries.values()) > MAX_TOTAL_BYTES:
        raise ModelPackageError("The package unpacks to more than 8 GB and is not opened.")
    _check_overlap(infos)
    return entries


def _same_everywhere(name: str) -> str:
    """Give what is equal for names that some file system takes for the same."""
    return unicodedata.normalize("NFC", name).casefold()


def _check_folders(entries: Mapping[str, zipfile.ZipInfo], taken: set[str]) -> None:
    for name in entries:
        folder = _same_everywhere(name).rpartition("/")[0]
        while folder:
            if folder in taken:
                raise ModelPackageError(f"The package holds '{folder}' both as a file and as a folder.")
            folder = folder.rpartition("/")[0]


def _check_overlap(infos: list[zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes of the archive: a bomb that no honest packer makes (CVE-2024-0450)."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise ModelPackageError(f"The package's member '{info.filename}' overlaps another one.")
        end = info.header_offset + _LOCAL_HEADER_BYTES + info.compress_size


def _check_entry(info: zipfile.ZipInfo, name: str) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if not is_safe_name(name):
        raise ModelPackageError(f"The package holds a member with the unsafe name {info.filename!r}.")
    if kind not in (0, stat.S_IFREG):
        raise ModelPackageError(f"The package's member '{name}' is a link or device, not a file.")
    if info.compress_type not in _METHODS:
        raise ModelPackageError(
            f"The package's member '{name}' is packed in a way that Kestrel does not unpack.",
            hint="Pack it again as a plain zip archive (stored or deflated).",
        )
    if info.flag_bits & 1:
        raise ModelPackageError(f"The package's member '{name}' is encrypted.", hint="Pack it without a password.")
    if info.file_size > MAX_RATIO * max(info.compress_size, 1):
        raise ModelPackageError(f"The package's member '{name}' claims an impossible size.")


def _definition_member(names: list[str], where: str) -> str:
    """Give the name of the definition: the only one at the top, or else the only one in a folder below."""
    shallow = [name for name in names if name.count("/") <= 1 and not _is_clutter(name)]
    for suffix in (".emd", ".kestrel.json"):
        found = [name for name in shallow if name.lower().endswith(suffix)]
        found = [name for name in found if "/" not in name] or found
        if len(found) > 1:
            raise ModelPackageError(
                f"{where} holds several definitions: {', '.join(sorted(found)[:8])}.",
                hint="Unpack it and choose one of them as the model."
                if where.startswith("The package")
                else "Choose one of them as the model.",
            )
        if found:
            return found[0]
    raise _without_definition(names, where)


def _is_clutter(name: str) -> bool:
    return name.lower().startswith(_CLUTTER) or name.rpartition("/")[2].startswith("._")


def _without_definition(names: list[str], where: str) -> ModelPackageError:
    inner = sorted(name for name in names if name.lower().endswith((".dlpk", ".zip")) and not _is_clutter(name))
    if inner:
        return ModelPackageError(
            f"{where} holds no model definition (.emd), but another package: {', '.join(inner[:8])}.",
            hint=f"Unpack it, and choose '{inner[0]}'." if where.startswith("The package") else f"Choose '{inner[0]}'.",
        )
    holds = ", ".join(sorted(names)[:8]) or "nothing"
    return ModelPackageError(f"{where} holds no model definition (.emd).", hint=f"It holds: {holds}.")


def _definition_in_folder(path: Path) -> str:
    """Give the name of the only definition in a folder.

    Raises:
        ModelPackageError: there is none, or several.
    """
    names = FolderMembers(path).names()
    if not any(name.lower().endswith((".emd", ".kestrel.json")) for name in names):
        texts = [name for name in names if name.lower().endswith(".json") and "/" not in name]
        ours = [name for name in texts[:_MAX_TEXTS] if _is_our_definition(path / name)]
        if len(ours) == 1:
            return ours[0]
    return _definition_member(names, f"The folder '{path}'")


def _is_our_definition(path: Path) -> bool:
    with path.open("rb") as stream:
        return SCHEMA_KEY.encode() in stream.read(_KEY_WITHIN)


def _open_definition(found: LocatedDefinition) -> ModelPackage:
    """Read a definition; Kestrel's own strictly, an .emd with repairs."""
    data, where, members, root = found.data, found.where, found.members, found.root
    is_ours = SCHEMA_KEY.encode() in data
    text = EmdText(read_json(data, where)) if is_ours else read_emd(data, where)
    if SCHEMA_KEY in text.content:
        ours = definition_from_json(read_json(data, where))
        return ModelPackage(replace(ours, notes=(*found.notes, *ours.notes)), members, root, data)
    names = [name[len(root) :] for name in members.names() if name.startswith(root)]
    definition = definition_from_emd(
        text.content, names, lambda name, n: _start_of(members, root + name, n), found.stem
    )
    return ModelPackage(replace(definition, notes=(*text.notes, *definition.notes)), members, root, data)


def _start_of(members: Members, name: str, n_bytes: int) -> bytes:
    if not members.has(name):
        raise ModelPackageError(
            f"The model definition names the program '{name}', which is not the path of a file.",
            hint="Check the path; a network drive may be disconnected.",
        )
    with _as_package_error(name), members.open(name) as stream:
        return stream.read(n_bytes)
