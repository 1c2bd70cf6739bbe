"""Writing a model package: an .emd, the weights beside it, and what people want to know, in one .dlpk.

Whatever describes the model - Kestrel's own definition, an .emd, or the text of either - becomes an .emd in the
package: ArcGIS opens it where the family is Esri's, and Kestrel gets back exactly what it was given. A package is
opened again before anybody is told that it is there.
"""

from __future__ import annotations

import errno
import hashlib
import html
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import DiskFullError, ModelHashError, ModelPackageError, OutputError
from .definition import SCHEMA, SCHEMA_KEY, ModelDefinition, definition_from_json
from .definition_json import definition_to_json
from .emd_text import read_emd, read_json
from .esri_files import is_generic
from .package import ModelPackage, is_safe_name, locate_definition, open_package
from .strict_json import MAX_JSON_BYTES

_BLOCK = 2**20
_MAX_TEXT_BYTES = 2**20
_MAX_IMAGE_BYTES = 16 * 2**20
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Of every member: packages of equal content are equal files."""
_FRAMEWORKS = {"onnx": "ONNX", "torchvision": "torchvision"}
_CHECKPOINTS = (".pth", ".pt")
_PROGRAMS = (".py", ".pyc", ".so", ".pyd", ".dll")
BUILT_IN = "[Functions]System\\DeepLearning\\ArcGISLearn\\"
"""Where ArcGIS has its own raster functions, as a definition names them."""
_IMAGES = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpg"), (b"GIF8", "gif"))
_POINTER = b"version https://git-lfs"
_WIDE_CHARACTERS = '\\/:*?"<>|'


@dataclass(frozen=True)
class PackageParts:
    """What goes into a package.

    Attributes:
        weights: The file of the weights.
        definition: Path of a .json or .emd file, or the text of a definition.
        name: Name of the package; empty: the definition's.
        card: A text for people, .md or .txt.
        license: The licence's text; empty: what the definition says.
        thumbnail: A picture, PNG, JPEG or GIF.
        extra_files: Further files: external data of an ONNX graph, the program that the definition names, ...
    """

    weights: Path
    definition: str
    name: str = ""
    card: Path | None = None
    license: str = ""
    thumbnail: Path | None = None
    extra_files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class WrittenPackage:
    """A package that was written and opened again, and what its maker should hear."""

    path: Path
    package: ModelPackage
    notes: tuple[str, ...]


def write_package(parts: PackageParts, output: Path) -> WrittenPackage:
    """Write a package.

    Args:
        parts: What goes into it.
        output: The file to write; one that is there is replaced when the new one is whole.

    Raises:
        InferenceError: a part cannot be used, the package would not open, or it cannot be written.
    """
    _check_links(parts)
    content, notes, folder = _read_definition(parts.definition)
    ours = definition_from_json(content) if SCHEMA_KEY in content else None
    if ours is None or not ours.program:
        _check_weights(parts.weights)
    if ours is not None:
        _check_stated(ours, parts.weights)
    if ours is not None and ours.kind not in _FRAMEWORKS:
        return _write_as_it_is(content, ours, notes, parts, output)
    emd = _as_emd(content, parts)
    stem = file_stem(parts.name or _name_of(emd) or parts.weights.stem)
    programs, told = _programs(emd, parts, folder)
    files = _files(parts, stem, programs)
    emd = _with_built_in_function(emd, programs)
    texts = {f"{stem}.emd": _json_text(emd), **_info(emd, parts, stem)}
    return _written(texts, files, (*notes, *told), parts, output)


def weights_beside(definition: str) -> Path:
    """Give the file of the weights that a definition names, or that is a model by itself.

    Args:
        definition: As in PackageParts.

    Raises:
        InferenceError: the definition cannot be used, or the weights do not lie beside it.
    """
    package = open_package(definition)
    folder: Path | None = getattr(package.members, "folder", None)
    if folder is None and not Path(package.definition.weights).is_absolute():
        raise ModelPackageError(
            "The weights lie in a package already, or nobody knows where they lie.", hint="Choose their file."
        )
    return (folder or Path()) / package.weights_member()


def _check_stated(definition: ModelDefinition, weights: Path) -> None:
    """Refuse other weights than those that the definition was written for.

    Raises:
        ModelHashError: they are others.
        ModelPackageError: they cannot be read.
    """
    if not definition.weights_sha256:
        return
    digest = hashlib.sha256()
    try:
        for block in _blocks(weights):
            digest.update(block)
    except OSError as error:
        raise ModelPackageError(f"The weights '{weights}' cannot be read: {error.strerror or error}.") from error
    if digest.hexdigest() != definition.weights_sha256:
        raise ModelHashError(
            f"The weights '{weights.name}' are not those that the definition was written for: their SHA-256 is "
            f"{digest.hexdigest()}, and {definition.weights_sha256} is stated.",
            hint="Choose the right file, or take weights_sha256 out of the definition.",
        )


def _write_as_it_is(
    content: Mapping[str, Any],
    definition: ModelDefinition,
    notes: tuple[str, ...],
    parts: PackageParts,
    output: Path,
) -> WrittenPackage:
    """Write a package of a kind that no .emd has a word for, with Kestrel's own definition in it."""
    if definition.kind == "python":
        raise ModelPackageError(
            "A raster function in Python is packed with its .emd, which ArcGIS reads too.", hint="Choose the .emd."
        )
    content = {name: value for name, value in content.items() if name != "weights_sha256"}
    detector = {**content["detector"], "weights": parts.weights.name}
    if "files" in detector:
        detector["files"] = [name.replace("\\", "/").rpartition("/")[2] for name in detector["files"]]
    content = {**content, "name": parts.name or definition.name, "detector": detector}
    if parts.license.strip():
        content["license"] = parts.license.strip()
    names = [str(name) for name in definition.options.get("files", ())]
    unsafe = [name for name in names if not is_safe_name(name.replace("\\", "/"))]
    if unsafe:
        raise ModelPackageError(f"The definition names the file '{unsafe[0][:200]}', which lies outside the model.")
    beside = [parts.weights.parent / name for name in names]
    given = {path.name for path in (parts.weights, *parts.extra_files)}
    parts = replace(parts, extra_files=(*parts.extra_files, *(path for path in beside if path.name not in given)))
    _check_links(parts)
    stem = file_stem(str(content["name"]))
    told = {"Name": content["name"], "Description": definition.description, "License": definition.license}
    texts = {f"{stem}.kestrel.json": _json_text(content), **_info(told, parts, stem)}
    return _written(texts, _files(parts, stem, ()), notes, parts, output)


def _written(
    texts: Mapping[str, bytes], files: Mapping[str, Path], notes: tuple[str, ...], parts: PackageParts, output: Path
) -> WrittenPackage:
    """Write the members, and open what was written."""
    _check_output(output, parts, files)
    try:
        # A folder of our own: nobody else's file has its name or is removed with it, and no link leads out of it.
        with tempfile.TemporaryDirectory(prefix=".kestrel-", dir=output.parent) as private:
            part = Path(private) / output.name
            _write(part, texts, files)
            package = _opened_again(part)
            missing = _missing_data(package)
            part.replace(output)
    except OSError as error:
        raise _write_error(error, output) from error
    return WrittenPackage(output, open_package(str(output)), (*notes, *missing, *package.definition.notes))


def file_stem(name: str) -> str:
    """Give a name that every system takes for a file, from the name of a model."""
    safe = "".join("_" if ord(c) < 32 or c in _WIDE_CHARACTERS else c for c in name)[:80].strip(" .")
    return safe if safe and is_safe_name(safe) else "model"


# -- The definition ----------------------------------------------------------------------------------------------------


def _read_definition(reference: str) -> tuple[dict[str, Any], tuple[str, ...], Path | None]:
    """Give the JSON object, what was repaired in it, and the folder where it lies."""
    reference = reference.strip()
    if reference.startswith("{"):
        read = read_emd(reference.encode("utf-8", "surrogatepass"), "given as text")
        return read.content, read.notes, None
    if not reference:
        raise ModelPackageError("No definition was given.", hint="Choose an .emd or .json file, or write its text.")
    path = _path_of(reference)
    if path.suffix.lower() != ".emd" and path.exists():
        found = locate_definition(reference)
        if found.notes or SCHEMA_KEY.encode() in found.data:
            return read_json(found.data, found.where), found.notes, getattr(found.members, "folder", None)
    data = _bytes_of(path, MAX_JSON_BYTES, "definition")
    read = read_emd(data, f"'{path.name}'")
    return read.content, read.notes, path.parent


def _path_of(reference: str) -> Path:
    """Give the definition's file.

    Raises:
        ModelPackageError: its home folder is nobody's.
    """
    try:
        return Path(reference).expanduser()
    except RuntimeError as error:
        raise ModelPackageError(f"The definition '{reference[:200]}' cannot be read: {error}.") from error


def _as_emd(content: Mapping[str, Any], parts: PackageParts) -> dict[str, Any]:
    """Give the .emd: Kestrel's own definition translated, an .emd with its keys and the weights' new name."""
    if SCHEMA_KEY in content:
        definition = definition_from_json(content)
        emd = emd_of(replace(definition, license=definition.license or _one_line(parts.license)), parts.weights.name)
    else:
        emd = {**content, "ModelFile": parts.weights.name}
    if _one_line(parts.license) and "License" not in emd:
        emd["License"] = _one_line(parts.license)
    return emd


def _one_line(text: str) -> str:
    return "" if "\n" in text.strip() else text.strip()


def emd_of(definition: ModelDefinition, weights: str) -> dict[str, Any]:
    """Give the .emd of a model that is ONNX or torchvision's.

    What ArcGIS understands stands in its own members; the definition as a whole is one more, from which exactly the
    same model is read again.

    Args:
        definition: The model.
        weights: Name of its weights in the package.
    """
    tile, spec = definition.tile, definition.input
    definition = replace(definition, weights=weights, weights_sha256="")
    emd = {
        "Framework": _FRAMEWORKS[definition.kind],
        "ModelType": "ObjectDetection",
        "ModelConfiguration": definition.options.get("architecture") or definition.options.get("head"),
        "ModelName": definition.name,
        "Name": definition.name,
        "ModelVersion": definition.version or None,
        "Description": definition.description or None,
        "License": definition.license or None,
        "ModelFile": weights,
        "ImageHeight": tile.size,
        "ImageWidth": tile.size,
        "SupportsVariableTileSize": tile.is_variable,
        "ExtractBands": list(spec.bands),
        "DataRange": None if spec.data_range is None else list(spec.data_range),
        **_cell_sizes(definition),
        "Classes": [
            {"Value": item.value, "Name": item.name, "Color": list(item.color)} for item in definition.classes
        ],
        "Kestrel": {"schema": SCHEMA, "definition": definition_to_json(definition)},
    }  # fmt: skip
    return {key: value for key, value in emd.items() if value is not None}


def _cell_sizes(definition: ModelDefinition) -> dict[str, Any]:
    cell_size = definition.cell_size
    if cell_size is None:
        return {}
    reference = {} if cell_size.wkid is None else {
        "spatialReference": {"wkid": cell_size.wkid, "latestWkid": cell_size.wkid}
    }  # fmt: skip
    low, high = cell_size.minimum, cell_size.maximum
    return {"MinCellSize": {"x": low, "y": low, **reference}, "MaxCellSize": {"x": high, "y": high, **reference}}


def _name_of(emd: Mapping[str, Any]) -> str:
    return str(emd.get("Name") or emd.get("ModelName") or "")


def _json_text(emd: Mapping[str, Any]) -> bytes:
    return json.dumps(emd, indent=2, ensure_ascii=False).encode("utf-8", "replace")


# -- Files -------------------------------------------------------------------------------------------------------------


def _check_links(parts: PackageParts) -> None:
    """Refuse links to other folders: a package is passed on, and what lies there may be meant for nobody else."""
    for path in (parts.weights, parts.card, parts.thumbnail, *parts.extra_files):
        if path is not None:
            _check_link(path, path.parent)


def _check_link(path: Path, folder: Path) -> None:
    """Refuse a file that lies elsewhere than in a folder, once links are followed.

    Raises:
        ModelPackageError: it does.
    """
    place = Path(os.path.realpath(path))
    if Path(os.path.realpath(folder)) not in place.parents:
        raise ModelPackageError(
            f"The file '{path}' is a link out of its folder, to '{place}'.",
            hint="Name the file that it leads to, or put a copy in its place.",
        )


def _check_output(output: Path, parts: PackageParts, files: Mapping[str, Path]) -> None:
    """Refuse to replace what goes into the package.

    Raises:
        OutputError: the output is one of the inputs.
    """
    reference = parts.definition.strip()
    definition = None if reference.startswith("{") else _path_of(reference)
    for path in (*files.values(), definition, parts.card, parts.thumbnail):
        if path is not None and _is_same(path, output):
            raise OutputError(
                f"The package '{output}' would replace the file '{path}', which goes into it.",
                hint="Choose another name for the package.",
            )


def _is_same(path: Path, output: Path) -> bool:
    """Tell whether two paths are one file, on systems too that do not tell capital letters from small ones."""
    places = {os.path.realpath(path).casefold(), os.path.realpath(output).casefold()}
    return len(places) == 1 or (output.exists() and path.samefile(output))


def _check_weights(path: Path) -> None:
    """Refuse weights that no detector could read, as far as that can be told without loading a network.

    Raises:
        InferenceError: they are missing, or damaged, or a program.
    """
    start = _bytes_of(path, len(_POINTER), "weights", is_start=True)
    if start.startswith(_POINTER):
        raise ModelPackageError(
            f"The weights '{path.name}' are a Git LFS pointer, not the model itself.",
            hint="Fetch them with 'git lfs pull'.",
        )
    if path.suffix.lower() == ".py":
        raise ModelPackageError(f"'{path.name}' is a program, not weights.", hint="Choose the file of the weights.")
    if path.suffix.lower() in _CHECKPOINTS:
        # Here, because it needs numpy, which a look at a definition does not.
        from .checkpoint import read_checkpoint

        read_checkpoint(path, path.name)


def _programs(
    emd: Mapping[str, Any], parts: PackageParts, folder: Path | None
) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Give the programs that the definition names, and what to tell of them; other programs are refused.

    Raises:
        ModelPackageError: a program that the definition does not name, or one that it names and that is not there.
    """
    function = str(emd.get("InferenceFunction") or "").replace("\\", "/")
    function = function[2:] if function.startswith("./") else function
    named = function.rpartition("/")[2] if function.lower().endswith(".py") and not is_generic(function) else ""
    given = {path.name: path for path in parts.extra_files}
    companions = _companions(emd, given, folder)
    others = [name for name in given if name.lower().endswith(_PROGRAMS) and given[name] not in companions]
    if not named and others:
        raise ModelPackageError(
            f"'{others[0]}' is a program, and the definition names none that would run.",
            hint="Leave it out, or name the raster function in the definition's member InferenceFunction.",
        )
    notes = tuple(f"'{path.name}' went into the package for ArcGIS; Kestrel never runs it." for path in companions)
    if not named:
        return companions, notes
    if not is_safe_name(function):
        raise ModelPackageError(
            f"The definition names the program '{function}', which is no place in the definition's own folder.",
            hint="Write the program's name alone into InferenceFunction, and put it beside the definition.",
        )
    beside = folder / function if folder is not None else None
    place = given.get(named) or (beside if beside is not None and beside.is_file() else None)
    if place is None:
        raise ModelPackageError(
            f"The definition names the program '{named}', which lies neither beside it nor among the further files.",
            hint="Add it to the further files.",
        )
    if folder is not None and place is beside:
        _check_link(place, folder)
    note = (
        f"The package holds a program, '{named}': whoever uses it is asked for consent to exactly this content first."
    )
    return (place, *companions), (note, *notes)


def _companions(emd: Mapping[str, Any], given: Mapping[str, Path], folder: Path | None) -> tuple[Path, ...]:
    """Give the files that ArcGIS runs for a family of arcgis.learn, where they are at hand."""
    if not _is_arcgis(emd):
        return ()
    names = [str(emd.get(key) or "").replace("\\", "/") for key in ("InferenceFunction", "ModelConfigurationFile")]
    found = []
    for name in (name for name in names if name.lower().endswith(".py") and "/" not in name and is_safe_name(name)):
        beside = folder / name if folder is not None else None
        place = given.get(name) or (beside if beside is not None and beside.is_file() else None)
        if place is not None and (is_generic(name) or name == names[1]):
            _check_link(place, place.parent)
            found.append(place)
    return tuple(found)


def _with_built_in_function(emd: dict[str, Any], programs: tuple[Path, ...]) -> dict[str, Any]:
    """Name Esri's generic function as the one that ArcGIS has built in, where the package does not hold it."""
    function = str(emd.get("InferenceFunction") or "")
    is_plain = is_generic(function) and not function.lower().startswith(BUILT_IN.lower()[:11])
    if not _is_arcgis(emd) or not is_plain or function in {path.name for path in programs}:
        return emd
    return {**emd, "InferenceFunction": BUILT_IN + function.replace("\\", "/").rpartition("/")[2]}


def _is_arcgis(emd: Mapping[str, Any]) -> bool:
    return str(emd.get("Framework") or "").lower().startswith("arcgis")


def _files(parts: PackageParts, stem: str, programs: tuple[Path, ...]) -> dict[str, Path]:
    """Give the files that are copied as they are, by their names in the package.

    Raises:
        ModelPackageError: a file is missing, or two would have the same name.
    """
    found: dict[str, Path] = {}
    extras = [path for path in parts.extra_files if path not in programs]
    for path in (parts.weights, *programs, *extras):
        if not path.is_file():
            raise ModelPackageError(f"The file '{path}' does not exist.", hint="Check the path.")
        name = path.name
        if not is_safe_name(name) or name.lower() in (other.lower() for other in (*found, f"{stem}.emd")):
            raise ModelPackageError(
                f"The file '{path}' cannot go into the package: its name is taken, or not one for every system.",
                hint="Rename it.",
            )
        found[name] = path
    return found


def _info(emd: Mapping[str, Any], parts: PackageParts, stem: str) -> dict[str, bytes]:
    """Give the members for people: card, licence, and the item's description as ArcGIS has it."""
    found: dict[str, bytes] = {}
    if parts.card is not None:
        suffix = ".md" if parts.card.suffix.lower() == ".md" else ".txt"
        found[f"README{suffix}"] = _bytes_of(parts.card, _MAX_TEXT_BYTES, "model card")
    if parts.license.strip():
        found["LICENSE.txt"] = parts.license.strip().encode("utf-8", "replace") + b"\n"
    picture = ""
    if parts.thumbnail is not None:
        data = _bytes_of(parts.thumbnail, _MAX_IMAGE_BYTES, "thumbnail")
        kind = next((kind for start, kind in _IMAGES if data.startswith(start)), "")
        if not kind:
            raise ModelPackageError(
                f"The thumbnail '{parts.thumbnail.name}' is no PNG, JPEG or GIF picture.", hint="Convert it to PNG."
            )
        picture = f"thumbnail/thumbnail.{kind}"
        found[f"esriinfo/{picture}"] = data
    found["esriinfo/iteminfo.xml"] = _item_info(emd, parts, stem, picture)
    return found


def _item_info(emd: Mapping[str, Any], parts: PackageParts, stem: str, picture: str) -> bytes:
    license_text = parts.license or str(emd.get("License") or "")
    members = {
        "name": stem,
        "title": parts.name or stem,
        "type": "Deep Learning Package",
        "typekeywords": f"Deep Learning,dlpk,ModelType_{emd.get('ModelType') or 'ObjectDetection'}",
        "snippet": str(emd.get("Description") or ""),
        "description": str(emd.get("Description") or ""),
        "licenseinfo": license_text,
        "thumbnail": picture,
    }
    lines = "".join(f"  <{name}>{_xml(value)}</{name}>\n" for name, value in members.items() if value)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<iteminfo>\n{lines}</iteminfo>\n'.encode("utf-8", "replace")


def _xml(text: str) -> str:
    return html.escape("".join(c for c in text if ord(c) >= 32 or c in "\n\t"), quote=False)


def _bytes_of(path: Path, most: int, what: str, *, is_start: bool = False) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ModelPackageError(f"The {what} '{path}' is not a file.", hint="Check the path.")
        with path.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        reason = error.strerror or error
        raise ModelPackageError(f"The {what} '{path}' cannot be read: {reason}.", hint="Check the path.") from error
    if len(data) > most and not is_start:
        raise ModelPackageError(f"The {what} '{path.name}' is larger than {most // 2**20} MB; that is none.")
    return data


# -- Writing -----------------------------------------------------------------------------------------------------------


def _write(part: Path, texts: Mapping[str, bytes], files: Mapping[str, Path]) -> None:
    with zipfile.ZipFile(part, "w", allowZip64=True) as archive:
        for name, data in texts.items():
            archive.writestr(_entry(name, zipfile.ZIP_DEFLATED), data)
        for name, path in files.items():
            entry = _entry(name, zipfile.ZIP_STORED)  # weights do not get smaller, and open faster so
            entry.file_size = path.stat().st_size
            with archive.open(entry, "w", force_zip64=entry.file_size > 2**31) as sink:
                for block in _blocks(path):
                    sink.write(block)


def _entry(name: str, compression: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = compression
    entry.create_system = 3
    entry.external_attr = 0o100644 << 16
    return entry


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while True:
            block = stream.read(_BLOCK)
            if not block:
                return
            yield block


def _opened_again(part: Path) -> ModelPackage:
    """Open what was written, and read all of it: what is wrong is told to its maker, not to its first user."""
    package = open_package(str(part))
    if package.definition.weights:
        package.weights_member()
    package.sha256()
    return package


def _missing_data(package: ModelPackage) -> tuple[str, ...]:
    """Tell which files an ONNX graph names for its numbers and the package does not hold."""
    if package.definition.kind != "onnx":
        return ()
    _, locations = package._weights_hash(package.weights_member())
    folder = package.weights_member().rpartition("/")[0]
    names = [f"{folder}/{name}".lstrip("/") for name in sorted(locations) if is_safe_name(name)]
    return tuple(
        f"The ONNX graph keeps data in a file '{name}', which the package does not hold: add it to the further files."
        for name in names
        if not package.members.has(name)
    )


def _write_error(error: OSError, output: Path) -> OutputError:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return DiskFullError(f"The disk of {output.parent} is full.", hint="Make room, then start again.")
    return OutputError(
        f"The package '{output}' cannot be written: {error.strerror or error}.", hint="Choose another place."
    )
