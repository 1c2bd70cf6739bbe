"""Model packages: open a .dlpk, .zip, .emd, .json or the definition's text, safely, and hand out its members.

A package is data from a stranger. Nothing is unpacked wholesale: members are looked at in the directory of the
archive, refused where they are odd, and copied one by one to names that we choose. Nothing in a package is executed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from ..errors import DiskFullError, ModelPackageError, OutputError
from .definition import SCHEMA_KEY, ModelDefinition, definition_from_json
from .esri import definition_from_emd

MAX_MEMBERS = 1000
MAX_JSON_BYTES = 4 * 2**20
MAX_TOTAL_BYTES = 8 * 2**30
MAX_RATIO = 1100  # deflate reaches 1032 : 1 at most; more is a lie in the directory
MAX_JSON_DEPTH = 64
_MAX_DIGITS = 20
_LOCAL_HEADER_BYTES = 30  # the fixed part
_BLOCK = 2**20
_LOCATION = re.compile(rb"\x0a\x08location\x12(?:([\x00-\x7f])|([\x80-\xff])\x01)", re.DOTALL)
"""Start of an ONNX graph's entry `location: name`, with the length of a name of at most 255 bytes."""
_LOCATION_BYTES = 300  # more than such an entry has
_DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"} | {
    device + digit for device in ("COM", "LPT") for digit in "0123456789¹²³"
}
"""Names that Windows opens as devices, whatever follows the first dot."""
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError,
)  # fmt: skip


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
        """Give the files' names relative to the folder, down to one folder below: it may be a home with millions."""
        files = [*self.folder.glob("*"), *self.folder.glob("*/*")]
        return sorted(p.relative_to(self.folder).as_posix() for p in files if p.is_file())

    def has(self, name: str) -> bool:
        """Tell whether `names` holds that name, without a look at all the others."""
        return name.count("/") <= 1 and _is_file(self.folder / name)

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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, for example
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

    def sha256(self) -> str:
        """Give the hash of what decides the result: the definition, the weights, and the files that belong to them.

        Of an archive these are all members except programs; beside a loose definition lies anything, so there they are
        the files that an ONNX graph names.
        """
        weights = self.weights_member()
        content, locations = self._weights_hash(weights)
        hashes = {weights: content}
        others = self._archived() if isinstance(self.members, ZipMembers) else self._present(locations)
        for name in others:
            if name not in hashes:
                hashes[name] = self._member_hash(name)
        digest = hashlib.sha256(hashlib.sha256(self.definition_bytes).digest())
        for name in sorted(hashes):
            digest.update(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest() + hashes[name])
        return digest.hexdigest()

    def _archived(self) -> list[str]:
        return [name for name in self.members.names() if not name.lower().endswith(".py")]

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


def _refuse_pointer(start: bytes, name: str) -> None:
    if start.startswith(b"version https://git-lfs"):
        raise ModelPackageError(
            f"The model file '{name}' is a Git LFS pointer, not the model itself.", hint="Fetch it with 'git lfs pull'."
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
        reference: Path of a .dlpk, .zip, .emd or .json file, or the text of a definition in JSON.

    Raises:
        ModelPackageError: no such file, not a package, or a package with something odd in it.
        ModelUnsupportedError: a model of a kind that Kestrel does not run.
        UntrustedCodeError: the model is a program, not data.
    """
    reference = reference.strip()
    if not reference:
        raise ModelPackageError("No model was given.", hint="Choose a .dlpk, .emd or .json file.")
    if reference.startswith("{"):
        data = reference.encode("utf-8", "surrogatepass")
        return _open_definition(data, "given as text", NoMembers(), "")
    try:
        return _open_file(Path(reference).expanduser())
    except (OSError, RuntimeError) as error:  # RuntimeError: a home that expanduser does not find
        reason = getattr(error, "strerror", None) or error
        raise ModelPackageError(f"The model file '{reference[:200]}' cannot be read: {reason}.") from error


def _open_file(path: Path) -> ModelPackage:
    if path.is_dir():
        raise ModelPackageError(f"The model '{path}' is a folder.", hint="Choose the .dlpk, .emd or .json file in it.")
    if not path.is_file():
        raise ModelPackageError(
            f"The model file '{path}' does not exist.", hint="Check the path; a network drive may be disconnected."
        )
    with path.open("rb") as stream:
        start = stream.read(64)
    if start.startswith(b"PK\x03\x04") and path.suffix.lower() not in (".pth", ".pt"):
        return _open_archive(path)
    _refuse_pointer(start, str(path))
    if path.suffix.lower() in (".emd", ".json"):
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelPackageError(f"The model definition '{path.name}' is larger than 4 MB; that is no definition.")
        return _open_definition(path.read_bytes(), f"'{path.name}'", FolderMembers(path.parent), "")
    raise ModelPackageError(
        f"The file '{path.name}' is not a model package.",
        hint="Kestrel opens .dlpk packages, and .emd or .json definitions that lie beside their weights. "
        "Describe bare weights with a definition, see docs/definition.md.",
    )


def _open_archive(path: Path) -> ModelPackage:
    with _as_package_error(path.name), zipfile.ZipFile(path) as archive:
        entries = _checked_entries(archive)
    members = ZipMembers(path, entries)
    name = _definition_member(members.names(), path.name)
    with _as_package_error(path.name), members.open(name) as stream:
        data = stream.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise ModelPackageError(f"The definition '{name}' is larger than 4 MB; that is no definition.")
    root = name[: name.rfind("/") + 1]
    return _open_definition(data, f"'{name}' in '{path.name}'", members, root)


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
    for info in infos:
        name = info.filename.replace("\\", "/")
        if name.endswith("/"):
            continue
        _check_entry(info, name)
        if name.lower() in {known.lower() for known in entries}:
            raise ModelPackageError(f"The package holds the member '{name}' twice; it is not clear which one counts.")
        entries[name] = info
    if sum(info.file_size for info in entries.values()) > MAX_TOTAL_BYTES:
        raise ModelPackageError("The package unpacks to more than 8 GB and is not opened.")
    _check_overlap(infos)
    return entries


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
    if info.flag_bits & 1:
        raise ModelPackageError(f"The package's member '{name}' is encrypted.", hint="Pack it without a password.")
    if info.file_size > MAX_RATIO * max(info.compress_size, 1):
        raise ModelPackageError(f"The package's member '{name}' claims an impossible size.")


def _definition_member(names: list[str], package: str) -> str:
    shallow = [name for name in names if name.count("/") <= 1]
    for suffix in (".emd", ".kestrel.json"):
        found = [name for name in shallow if name.lower().endswith(suffix)]
        if len(found) > 1:
            raise ModelPackageError(
                f"The package '{package}' holds several definitions: {', '.join(sorted(found))}.",
                hint="Unpack it and choose one of them as the model.",
            )
        if found:
            return found[0]
    holds = ", ".join(sorted(names)[:8]) or "nothing"
    raise ModelPackageError(f"The package '{package}' holds no model definition (.emd).", hint=f"It holds: {holds}.")


def _open_definition(data: bytes, where: str, members: Members, root: str) -> ModelPackage:
    content = read_json(data, where)
    if SCHEMA_KEY in content:
        definition = definition_from_json(content)
    else:
        definition = definition_from_emd(content, members.names())
    return ModelPackage(definition, members, root, data)


def read_json(data: bytes, where: str) -> dict[str, Any]:
    """Read a JSON object strictly: bounded depth, finite numbers, no member twice.

    Args:
        data: UTF-8, with or without a byte order mark.
        where: How messages call the text.

    Raises:
        ModelPackageError: not such an object; with line and column where the syntax is at fault.
    """
    try:
        content = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_unique_members,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_bounded,
        )
    except UnicodeDecodeError as error:
        raise ModelPackageError(f"The model definition {where} is not UTF-8 text.") from error
    except json.JSONDecodeError as error:
        raise ModelPackageError(
            f"The model definition {where} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}."
        ) from error
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelPackageError(f"The model definition {where} cannot be used: {reason}.") from error
    if not isinstance(content, dict):
        raise ModelPackageError(f"The model definition {where} does not hold a JSON object.")
    if _depth(content) > MAX_JSON_DEPTH:
        raise ModelPackageError(f"The model definition {where} cannot be used: it is nested too deeply.")
    return content


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the member '{twice}' stands in it twice")
    return content


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0:
        raise ValueError(f"it holds the number {text}")
    return number


def _bounded(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(text)} digits")
    return int(text)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds the number {name}")


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth
