from __future__ import annotations

import json
import stat
import struct
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import (
    DiskFullError,
    InferenceError,
    ModelPackageError,
    ModelUnsupportedError,
    OutputError,
    UntrustedCodeError,
)
from kestrel.inference.models.checkpoint import read_checkpoint
from kestrel.inference.models.emd_text import read_json
from kestrel.inference.models.package import is_safe_name, open_package
from kestrel.inference.models.program import extract_program, program_files, program_sha256
from kestrel.tests.fixtures.esri_packages import CONTAINERS, ERAS, LAYOUTS, arcgis_emd, file_of, write_package
from kestrel.tests.fixtures.packages import (
    definition,
    emd,
    entry_of_kind,
    good_entries,
    patch_directory,
    write_zip,
)

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


# -- Packages that open ------------------------------------------------------------------------------------------------


def test_a_package_opens_and_hands_out_its_weights(tmp_path: Path) -> None:
    package = open_package(str(write_zip(tmp_path / "p.dlpk", good_entries())))
    assert ("Cells", ["Tree", "Shrub"]) == (package.definition.name, [c.name for c in package.definition.classes])
    target = package.extract(package.weights_member(), tmp_path / "out")
    assert b"weights" == target.read_bytes()


@pytest.mark.parametrize("form", ["emd", "json", "zip", "nested zip", "text", "loose json in a folder of weights"])
def test_all_forms_of_a_package_hold_the_same_weights(tmp_path: Path, form: str) -> None:
    (tmp_path / "sub").mkdir()
    weights = {"text": str(tmp_path / "model.onnx"), "loose json in a folder of weights": "sub/model.onnx"}
    name = weights.get(form, "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"weights")
    (tmp_path / "sub" / "model.onnx").write_bytes(b"weights")
    text = json.dumps(definition(detector={"kind": "onnx", "weights": name}))
    references = {
        "emd": lambda: _write(tmp_path / "m.emd", json.dumps(emd())),
        "json": lambda: _write(tmp_path / "m.json", text),
        "zip": lambda: write_zip(tmp_path / "p.zip", [("a.kestrel.json", text), ("model.onnx", b"weights")]),
        "nested zip": lambda: write_zip(
            tmp_path / "p.zip", [("f/a.emd", json.dumps(emd())), ("f/model.onnx", b"weights")]
        ),
        "text": lambda: text,
    }
    references["loose json in a folder of weights"] = references["json"]
    package = open_package(str(references[form]()))
    assert b"weights" == package.extract(package.weights_member(), tmp_path / "out").read_bytes()


def _write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = _write(tmp_path / "m.emd", b"\xef\xbb\xbf" + json.dumps(emd()).encode())
    assert "Cells" == open_package(str(path)).definition.name


@pytest.mark.parametrize("name", [".\\model.onnx", "./model.onnx", "././model.onnx", "model.onnx"])
def test_spellings_of_windows_and_unix_name_the_same_member(tmp_path: Path, name: str) -> None:
    package = open_package(str(write_zip(tmp_path / "p.dlpk", good_entries(ModelFile=name))))
    assert "model.onnx" == package.weights_member()


def test_folders_made_with_backslashes_are_folders(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "p.dlpk", [("f\\Cells.emd", json.dumps(emd())), ("f\\model.onnx", b"weights")])
    assert "f/model.onnx" == open_package(str(path)).weights_member()


def test_the_hash_of_an_archive_changes_with_all_that_may_decide_the_result(tmp_path: Path) -> None:
    def digest(name: str, entries: list[Any]) -> str:
        return open_package(str(write_zip(tmp_path / name, entries))).sha256()

    data = ("model.onnx.data", b"more weights")
    first = digest("a.dlpk", [*good_entries(), data])
    assert first == digest("b.zip", [data, *good_entries()[::-1], ("Detector.py", "print()")])
    changed = [
        [*good_entries(ImageHeight=256, ImageWidth=256), data],
        [good_entries()[0], ("model.onnx", b"other"), data],
        [*good_entries(), ("model.onnx.data", b"other")],
        [*good_entries(), ("other.data", b"more weights")],
        good_entries(),
    ]
    assert len(changed) + 1 == len({first, *(digest(f"{i}.dlpk", entries) for i, entries in enumerate(changed))})


def onnx_bytes(*locations: str, filler: int = 0) -> bytes:
    """Give what stands around the names of external data in an ONNX graph."""
    entries = (name.encode() for name in locations)
    parts = [b"\x0a\x08location\x12" + _length(name) + name + b"\x6a\x0b\x0a\x06offset" for name in entries]
    return b"\x08\x09" + b"\x00" * filler + b"".join(parts)


def _length(name: bytes) -> bytes:
    return bytes([len(name)]) if len(name) < 128 else bytes([len(name) % 128 + 128, len(name) // 128])


@pytest.mark.parametrize("form", ["emd", "json in the folder above", "text"])
@pytest.mark.parametrize("name", ["weights.bin", "é" * 100, "a" * 127, "a" * 128])
def test_the_hash_of_a_loose_model_changes_with_the_files_that_its_graph_names(
    tmp_path: Path, form: str, name: str
) -> None:
    folder = tmp_path / "sub"
    folder.mkdir()
    weights = {"text": str(folder / "model.onnx"), "json in the folder above": "sub/model.onnx"}
    text = json.dumps(definition(detector={"kind": "onnx", "weights": weights.get(form, "model.onnx")}))
    reference = {
        "text": text,
        "json in the folder above": str(_write(tmp_path / "m.json", text)),
        "emd": str(_write(folder / "m.emd", json.dumps(emd()))),
    }[form]
    _write(folder / "model.onnx", onnx_bytes("../secret", "not there", name))
    first = open_package(reference).sha256()
    _write(folder / name, b"weights")
    second = open_package(reference).sha256()
    _write(folder / name, b"other")
    third = open_package(reference).sha256()
    _write(folder / "model.onnx.zip", b"no part of it")
    assert 3 == len({first, second, third})
    assert third == open_package(reference).sha256()


@pytest.mark.parametrize("before_the_end", range(0, 40, 3))
def test_names_of_files_are_found_wherever_they_stand_in_a_large_graph(tmp_path: Path, before_the_end: int) -> None:
    _write(tmp_path / "m.emd", json.dumps(emd()))
    _write(tmp_path / "model.onnx", onnx_bytes("weights.bin", filler=2**20 - before_the_end))
    first = open_package(str(tmp_path / "m.emd")).sha256()
    _write(tmp_path / "weights.bin", b"weights")
    assert first != open_package(str(tmp_path / "m.emd")).sha256()


def test_files_beside_a_loose_definition_that_do_not_belong_to_it_are_not_read(tmp_path: Path) -> None:
    _write(tmp_path / "m.emd", json.dumps(emd()))
    _write(tmp_path / "model.onnx", onnx_bytes("weights.bin"))
    for name in ("holiday.mp4", "model.onnx.bak", "model.data"):
        _write(tmp_path / name, POINTER)  # would be refused where it is read
    assert open_package(str(tmp_path / "m.emd")).sha256()


def test_a_home_folder_full_of_files_is_not_searched_through(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "model.onnx").write_bytes(b"weights")
    (tmp_path / "a" / "saved_model.pb").write_bytes(b"")
    (tmp_path / "a" / "variables").mkdir()
    (tmp_path / "a" / "variables" / "variables.index").write_bytes(b"")
    _write(tmp_path / "m.emd", json.dumps(emd(ModelFile="a/b/c/model.onnx")))
    package = open_package(str(tmp_path / "m.emd"))
    assert ["a/saved_model.pb", "a/variables/variables.index", "m.emd"] == package.members.names()
    assert "a/b/c/model.onnx" == package.weights_member()  # a file that is named is not searched for


# -- Esri's packages ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["p.dlpk", "p.zip", "folder"])
def test_packages_of_every_era_and_layout_open(tmp_path: Path, name: str, layout: str, era: str) -> None:
    canary = tmp_path / "canary"
    path = write_package(tmp_path / name, arcgis_emd("FasterRCNN"), b"weights", layout=layout, era=era, canary=canary)
    for reference in {path, tmp_path / name}:  # a folder opens by itself, too
        package = open_package(str(reference))
        assert ("arcgis", "FasterRCNN", ()) == (
            package.definition.kind, package.definition.options["family"], package.definition.notes
        )  # fmt: skip
        out = tmp_path / f"out-{reference.name}"
        assert b"weights" == package.extract(package.weights_member(), out).read_bytes()
        assert package.sha256()
    assert not canary.exists()


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_of_weights_holds_the_same_numbers(tmp_path: Path, container: str) -> None:
    torch = pytest.importorskip("torch")
    state = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.tensor([1, 2])}
    path = write_package(tmp_path / "p.dlpk", arcgis_emd("RetinaNet"), state, container=container)
    package = open_package(str(path))
    weights = package.extract(package.weights_member(), tmp_path / "weights")
    if container == "safetensors":
        assert file_of(state, container) == weights.read_bytes()
        return
    assert weights.read_bytes().startswith(b"PK") != ("legacy" in container)
    tensors = {name: tensor.numpy().tolist() for name, tensor in read_checkpoint(weights, "weights").items()}
    assert {"layer.weight": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], "layer.bias": [1, 2]} == tensors


def test_damage_in_a_package_is_repaired_and_told(tmp_path: Path) -> None:
    text = json.dumps(arcgis_emd("FasterRCNN", ModelFile="model"))[:-1] + ",}"
    path = write_zip(tmp_path / "p.dlpk", [("f/Palms.emd", text), ("f/model.pth", b"weights")])
    definition_ = open_package(str(path)).definition
    assert ("Palms", "model.pth") == (definition_.name, definition_.weights)
    assert [
        "The model definition 'f/Palms.emd' in 'p.dlpk', line 1: there is a comma too many, which was passed over.",
        "ModelFile says 'model'; the package's file 'model.pth' was taken for it.",
    ] == list(definition_.notes)


def test_text_of_an_emd_is_repaired_too(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"weights")
    text = json.dumps(emd(ModelFile=str(tmp_path / "model.onnx")))[:-1] + ",}"
    for reference in (text, "\ufeff" + text):
        package = open_package(reference)
        assert "given as text, line 1: there is a comma too many" in package.definition.notes[0]
        assert str(tmp_path / "model.onnx") == package.weights_member()


def test_a_definition_at_the_top_comes_before_those_in_folders(tmp_path: Path) -> None:
    entries = [*good_entries(), ("source/Other.emd", "{}"), ("esriinfo/x.emd", "{}"), ("__MACOSX/._Cells.emd", "{}"),
               ("._Cells.emd", "{}")]  # fmt: skip
    assert "Cells" == open_package(str(write_zip(tmp_path / "p.dlpk", entries))).definition.name


@pytest.mark.parametrize("name", ["m.emd", "m.kestrel.json", "whatever.json", "sub/m.emd"])
def test_a_folder_with_one_definition_opens(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    _write(path, json.dumps(definition() if name.endswith("json") else emd()))
    _write(tmp_path / "other.json", '{"type": "FeatureCollection"}')
    (path.parent / "model.onnx").write_bytes(b"weights")
    package = open_package(str(tmp_path))
    assert b"weights" == package.extract(package.weights_member(), tmp_path / "out").read_bytes()


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.emd", "b.emd"], r"The folder '.*' holds several definitions: a\.emd, b\.emd\. Choose one of them"),
        (["a/x.emd", "b/x.emd"], r"several definitions: a/x\.emd, b/x\.emd"),
        (["a.dlpk"], r"holds no model definition \(\.emd\), but another package: a\.dlpk\. Choose 'a\.dlpk'"),
        (["a.pth"], r"holds no model definition \(\.emd\)\. It holds: a\.pth"),
    ],
)
def test_a_folder_without_one_definition_is_refused_with_what_to_choose(
    tmp_path: Path, names: list[str], reason: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _write(tmp_path / name, json.dumps(emd()))
    with pytest.raises(ModelPackageError, match=reason):
        open_package(str(tmp_path))


def test_what_is_for_people_is_found_and_read_in_part(tmp_path: Path) -> None:
    extra = {"LICENSE": "Lizenz für alle".encode(), "notes.txt": b"n", "esriinfo/iteminfo.xml": b"<x/>",
             "esriinfo/thumbnail/thumbnail.png": b"png", "source/deep/README.md": b"r", "data.bin": b"d"}  # fmt: skip
    for name in ("p.dlpk", "folder"):
        path = write_package(tmp_path / name, arcgis_emd("FasterRCNN"), b"weights", layout="folder", extra=extra)
        package = open_package(str(path))
        found = {member[len(package.root) :] for member in package.info_files()}
        assert {
            "LICENSE",
            "esriinfo/iteminfo.xml",
            "model_metrics.html",
            "ModelCharacteristics/loss_graph.png",
        } <= found
        assert ("notes.txt" in found) == (name == "p.dlpk")  # beside a loose definition lie other people's texts
        assert not {"data.bin", "source/deep/README.md", "model.pth"} & found
        assert "Lizenz für alle" == package.read_text(package.root + "LICENSE")
        assert "Lizenz f" == package.read_text(package.root + "LICENSE", 9)  # in the middle of a character


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("ä".encode("cp1252"), "ä"),
        ("ä".encode("utf-16"), "ä"),
        (b"\xef\xbb\xbfa", "a"),
        (b"\x81", "\ufffd"),
        (b"", ""),
    ],
)
def test_texts_for_people_are_read_in_their_encoding(tmp_path: Path, data: bytes, text: str) -> None:
    package = open_package(str(write_zip(tmp_path / "p.dlpk", [*good_entries(), ("LICENSE", data)])))
    assert text == package.read_text("LICENSE")


@pytest.mark.parametrize("name", ["missing", "../secret", "/etc/passwd", "sub/../../secret"])
def test_only_members_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    folder = tmp_path / "inner"
    folder.mkdir()
    _write(folder / "m.emd", json.dumps(emd()))
    for reference in (folder / "m.emd", write_zip(tmp_path / "p.dlpk", good_entries())):
        with pytest.raises(ModelPackageError, match="does not hold the file"):
            open_package(str(reference)).read_text(name)


# -- Programs ----------------------------------------------------------------------------------------------------------

OWN = {"Framework": "PyTorch", "InferenceFunction": "Own.py", "ModelFile": None}


def test_a_package_with_a_program_of_its_own_opens_without_running_it(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = write_package(tmp_path / "p.dlpk", {**arcgis_emd("FasterRCNN"), "InferenceFunction": "Own.py"},
                         canary=canary, layout="windows")  # fmt: skip
    package = open_package(str(path))
    assert ("python", "Own.py") == (package.definition.kind, package.definition.program)
    assert "model/Own.py" in {file.name for file in program_files(package)}
    copy = extract_program(package, tmp_path / "copy", program_sha256(package))
    assert (copy / "model" / "Own.py").is_file()
    with pytest.raises(UntrustedCodeError):
        extract_program(package, tmp_path / "other", "0" * 64)
    assert not canary.exists()


@pytest.mark.parametrize("form", ["p.dlpk", "folder"])
def test_the_hash_of_a_program_changes_with_all_of_its_files(tmp_path: Path, form: str) -> None:
    def digest(name: str, **files: bytes) -> str:
        target = tmp_path / name / form
        target.parent.mkdir()
        path = write_package(target, {**emd(), **OWN}, b"w", extra={f"{key}.py": value for key, value in files.items()})
        return open_package(str(path)).sha256()

    first = digest("1", Own=b"a", helper=b"b")
    assert first == digest("2", Own=b"a", helper=b"b")
    others = [digest("3", Own=b"x", helper=b"b"), digest("4", Own=b"a", helper=b"x"), digest("5", Own=b"a")]
    assert 4 == len({first, *others})


def test_the_hash_of_a_traced_copy_changes_with_it(tmp_path: Path) -> None:
    def digest(name: str, traced: bytes) -> str:
        data = arcgis_emd("DETReg", TorchScript={"CPU": "c.pt"})
        package = open_package(str(write_package(tmp_path / name, data, b"weights", extra={"c.pt": traced})))
        assert "c.pt" == package.definition.program
        return package.sha256()

    assert digest("a.dlpk", b"1") == digest("b.dlpk", b"1") != digest("c.dlpk", b"2")


# -- Packages that are refused -----------------------------------------------------------------------------------------


def evil(*entries: Any) -> Callable[[Path], Path]:
    return lambda path: write_zip(path, [*good_entries(), *entries])


def encrypted(path: Path) -> Path:
    return patch_directory(write_zip(path, good_entries()), "model.onnx", flag_bits=1)


def too_large(path: Path) -> Path:
    return patch_directory(write_zip(path, good_entries()), "model.onnx", size=2**31)


def overlapping(path: Path) -> Path:
    # The second member's entry points to the first one's data.
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in good_entries():
            archive.writestr(name, content)
        archive.writestr("twin.bin", b"weights")
        archive.filelist[-1].header_offset = archive.filelist[-2].header_offset
    return path


def bad_name(path: Path) -> Path:
    # The name is not UTF-8, and its entry says that it is.
    patch_directory(write_zip(path, [*good_entries(), ("xx.bin", b"")]), "xx.bin", flag_bits=0x800)
    path.write_bytes(path.read_bytes().replace(b"xx.bin", b"\xff\xfe.bin"))
    return path


def deep_json(path: Path) -> Path:
    text = json.dumps(emd())[:-1] + ', "x": ' + "[" * 100 + "]" * 100 + "}"
    return write_zip(path, [("Cells.emd", text), ("model.onnx", b"")])


def emd_text(text: str) -> Callable[[Path], Path]:
    return lambda path: write_zip(path, [("Cells.emd", text), ("model.onnx", b"")])


LINK, FOLDER_LINK, FIFO, DEVICE = (kind | 0o777 for kind in (stat.S_IFLNK, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR))

EVIL: dict[str, tuple[Callable[[Path], Path], str]] = {
    "zip slip": (evil(("../x.txt", "x")), "unsafe name"),
    "zip slip in the middle": (evil(("a/../../x.txt", "x")), "unsafe name"),
    "zip slip with backslashes": (evil(("..\\..\\x.txt", "x")), "unsafe name"),
    "absolute": (evil(("/etc/passwd", "x")), "unsafe name"),
    "drive": (evil(("C:/x.txt", "x")), "unsafe name"),
    "drive with backslash": (evil(("C:\\x.txt", "x")), "unsafe name"),
    "network share": (evil(("\\\\host\\share\\x", "x")), "unsafe name"),
    "other stream": (evil(("model.onnx:hidden", "x")), "unsafe name"),
    "control character": (evil(("a\nb.txt", "x")), "unsafe name"),
    "wildcard": (evil(("a*.txt", "x")), "unsafe name"),
    "device of Windows": (evil(("nul.txt", "x")), "unsafe name"),
    "dot at the end": (evil(("model.onnx.", "x")), "unsafe name"),
    "dot": (evil(("./x.txt", "x")), "unsafe name"),
    "link to a file": (evil((entry_of_kind("link", LINK), "/etc/passwd")), "link or device"),
    "link to a folder": (evil((entry_of_kind("sub", FOLDER_LINK), "/etc")), "link or device"),
    "pipe": (evil((entry_of_kind("pipe", FIFO), "")), "link or device"),
    "device": (evil((entry_of_kind("null", DEVICE), "")), "link or device"),
    "case collision": (evil(("MODEL.onnx", "x")), "twice"),
    "collision of composed characters": (evil(("\u00e9.bin", "x"), ("e\u0301.bin", "x")), "twice"),
    "file and folder": (evil(("model.onnx/x", "x")), "both as a file and as a folder"),
    "flags that lie about the name's text": (bad_name, "damaged"),
    "7-Zip": (lambda path: _write(path, b"7z\xbc\xaf\x27\x1c" + bytes(40)), "is a 7-Zip archive.*Unpack it"),
    "RAR": (lambda path: _write(path, b"Rar!\x1a\x07\x01\x00"), "is a RAR archive"),
    "gzip": (lambda path: _write(path, b"\x1f\x8b\x08\x00"), "is a gzip archive"),
    "bzip2": (lambda path: _write(path, b"BZh91AY"), "is a bzip2 archive"),
    "xz": (lambda path: _write(path, b"\xfd7zXZ\x00"), "is an xz archive"),
    "tar": (lambda path: _write(path, bytes(257) + b"ustar" + bytes(300)), "is a tar archive"),
    "part of a zip": (lambda path: _write(path, b"PK\x07\x08" + bytes(40)), "one part of a zip archive"),
    "HDF5": (lambda path: _write(path, b"\x89HDF\r\n\x1a\n"), "is an HDF5 file"),
    "program": (lambda path: _write(path, b"MZ\x90\x00"), "is a program for Windows"),
    "web page": (lambda path: _write(path, b"\n<!DOCTYPE html><html>"), "is a web page.*sign in"),
    "web page as definition": (emd_text("<html><body>Sign in"), "'Cells.emd' is a web page"),
    "pointer as definition": (emd_text(POINTER.decode()), "'Cells.emd' is a Git LFS pointer"),
    "error of a portal": (
        lambda path: _write(path, b'{"error":{"code":499}}'), "error message of a server.*Sign",
    ),
    "package in a package": (
        lambda path: write_zip(path, [("Model.dlpk", b"PK\x03\x04")]), "but another package: Model.dlpk.*choose 'Model",
    ),
    "two definitions in folders": (
        lambda path: write_zip(path, [("a/x.emd", "{}"), ("b/x.emd", "{}")]), "several definitions: a/x.emd, b/x.emd",
    ),
    "empty archive": (lambda path: write_zip(path, []), "no model definition.*nothing"),
    "encrypted": (encrypted, "encrypted"),
    "lying size": (too_large, "impossible size"),
    "overlap": (overlapping, "overlaps"),
    "many members": (evil(*[(f"{i}.txt", "") for i in range(999)]), "1001 members"),
    "huge json": (emd_text(json.dumps(emd(Description="x" * (4 * 2**20)))), "larger than 4 MB"),
    "deep json": (deep_json, "nested too deeply"),
    "very deep json": (emd_text("[" * 200_000), "nested too deeply"),
    "member twice": (emd_text('{"Framework": "ONNX", "Framework": "Python"}'), "twice"),
    "too large for a float": (emd_text('{"ImageHeight": 1e999}'), "1e999"),
    "5,000 digits": (emd_text('{"ImageHeight": ' + "9" * 5000 + "}"), "5000 digits"),
    "400 digits": (emd_text('{"ImageHeight": ' + "9" * 400 + "}"), "400 digits"),
    "broken json": (emd_text('{\n"Framework": }'), "line 2, column 14"),
    "a list": (emd_text("[1, 2]"), "JSON object"),
    "two definitions": (evil(("Other.emd", json.dumps(emd()))), "several definitions: Cells.emd, Other.emd"),
    "no definition": (lambda path: write_zip(path, [("model.onnx", b"")]), "no model definition.*model.onnx"),
    "a definition too deep": (lambda path: write_zip(path, [("a/b/c.emd", "{}")]), "no model definition"),
    "nothing in it": (lambda path: write_zip(path, [("a/", b"")]), "no model definition.*nothing"),
    "a pointer": (lambda path: _write(path, POINTER), "Git LFS pointer.*git lfs pull"),
    "no zip": (lambda path: _write(path, b"hello"), "not a model package"),
    "nothing": (lambda path: _write(path, b""), "not a model package: it is empty"),
    "cut off": (lambda path: _write(path, write_zip(path, good_entries()).read_bytes()[:-40]), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_an_odd_package_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    build, reason = EVIL[name]
    with pytest.raises(ModelPackageError, match=f"(?s){reason}"):
        open_package(str(build(tmp_path / "p.dlpk")))
    assert {"p.dlpk"} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match="twice"):
        open_package(str(write_zip(tmp_path / "p.dlpk", [*good_entries(), ("model.onnx", b"other")])))


def test_a_member_that_is_longer_than_the_directory_says_is_refused_when_it_is_read(tmp_path: Path) -> None:
    entries = [good_entries()[0], ("model.onnx", b"weights" * 1000)]
    path = patch_directory(write_zip(tmp_path / "p.dlpk", entries), "model.onnx", size=10)
    package = open_package(str(path))
    with pytest.raises(ModelPackageError, match="damaged"):
        package.extract(package.weights_member(), tmp_path / "out")


def test_damaged_weights_are_refused_when_they_are_read(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "p.dlpk", [good_entries()[0], ("model.onnx", bytes(range(256)) * 50)])
    data = bytearray(path.read_bytes())
    at = data.find(b"model.onnx") + 30
    data[at : at + 20] = b"\xff" * 20
    path.write_bytes(data)
    with pytest.raises(ModelPackageError, match="damaged"):
        open_package(str(path)).sha256()


@pytest.mark.parametrize("weights", [
    "../model.onnx", "/etc/passwd", "C:\\passwd", "\\\\host\\share\\m.onnx", "/vsicurl/http://h/m", "a:b",
    "https://host/model.onnx", "sub/../../model.onnx", ".", "NUL\x00", "model.onnx/", "other.onnx",
])  # fmt: skip
def test_weights_must_be_a_member_of_the_package(tmp_path: Path, weights: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"secret")
    _write(tmp_path / "inner" / "m.emd", json.dumps(emd(ModelFile=weights)))
    for reference in (write_zip(tmp_path / "p.dlpk", good_entries(ModelFile=weights)), tmp_path / "inner" / "m.emd"):
        with pytest.raises(ModelPackageError, match=r"lies outside the package|does not hold it"):
            open_package(str(reference)).weights_member()


def test_missing_weights_are_told_with_what_is_there(tmp_path: Path) -> None:
    package = open_package(str(write_zip(tmp_path / "p.dlpk", good_entries(ModelFile="best.onnx"))))
    with pytest.raises(ModelPackageError, match=r"'best\.onnx'.*It holds: Cells\.emd, model\.onnx"):
        package.sha256()


def test_weights_are_not_written_over_a_file(tmp_path: Path) -> None:
    package = open_package(str(write_zip(tmp_path / "p.dlpk", good_entries())))
    with pytest.raises(OutputError, match="out cannot be written: File exists"):
        package.extract("model.onnx", _write(tmp_path / "out", b""))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device on this system")
def test_a_full_disk_is_told_as_one(tmp_path: Path) -> None:
    package = open_package(str(write_zip(tmp_path / "p.dlpk", good_entries())))

    class Full(type(tmp_path)):  # type: ignore[misc]
        """A path on a disk without room."""

        def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
            return open("/dev/full", "wb", buffering=0)

    with pytest.raises(DiskFullError, match="is full"):
        package.extract("model.onnx", Full(tmp_path / "out"))


def test_weights_that_are_a_pointer_are_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(POINTER)
    path = _write(tmp_path / "m.emd", json.dumps(emd()))
    with pytest.raises(ModelPackageError, match="Git LFS pointer"):
        open_package(str(path)).sha256()


@pytest.mark.parametrize("weights", ["model.onnx", "/nowhere/model.onnx"])
def test_a_definition_given_as_text_names_its_weights_by_an_absolute_path(weights: str) -> None:
    package = open_package(json.dumps(definition(detector={"kind": "onnx", "weights": weights})))
    with pytest.raises(ModelPackageError, match="absolute path"):
        package.sha256()


@pytest.mark.parametrize(
    "reference",
    ["", "  ", "/nowhere/m.dlpk", "~nobody-of-that-name/m.dlpk", "~a\x00b", "x" * 5000, "[" * 5000, "a\x00b", "{", "{}",
     '{"a": 1}', '{"kestrel_definition": 1}', '{"x": "\ud800"}', "https://host/m.dlpk", "/vsizip/m.zip"],
)  # fmt: skip
def test_a_reference_to_nothing_is_refused(reference: str) -> None:
    with pytest.raises(InferenceError) as caught:
        open_package(reference)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("text", ["{", '{"a": 1, "a": 2}'])
def test_a_definition_given_as_text_is_called_that(text: str) -> None:
    with pytest.raises(ModelPackageError, match=r"^The model definition given as text (is not valid JSON|cannot)"):
        open_package(text)


def test_a_folder_without_a_definition_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(
        ModelPackageError, match=r"The folder '.*' holds no model definition \(\.emd\)\. It holds: nothing"
    ):
        open_package(str(tmp_path))


def test_a_file_that_is_no_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match=r"docs/definition\.md"):
        open_package(str(_write(tmp_path / "photo.tif", b"\x08\x07")))


@pytest.mark.parametrize("name", ["model.pth", "model.pt", "model.safetensors"])
def test_bare_weights_that_are_damaged_are_told(tmp_path: Path, name: str) -> None:
    content = write_zip(tmp_path / "z", [("archive/data.pkl", b"")]).read_bytes() if ".pt" in name else b"\x08\x07"
    with pytest.raises(ModelPackageError, match="are damaged"):
        open_package(str(_write(tmp_path / name, content)))


def test_a_loose_definition_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ModelPackageError, match="larger than 4 MB"):
        open_package(str(_write(tmp_path / "m.emd", b" " * (4 * 2**20 + 1))))


@pytest.mark.parametrize(
    "text", [json.dumps(definition()).encode("utf-16"), json.dumps(definition())[:-1].encode() + b",}"]
)
def test_kestrels_own_definition_is_read_strictly(tmp_path: Path, text: bytes) -> None:
    for name in ("m.json", "m.emd"):
        with pytest.raises(ModelPackageError, match=r"UTF-8|not valid JSON"):
            open_package(str(_write(tmp_path / name, text)))


@pytest.mark.parametrize(
    ("members", "expected", "reason"),
    [
        ({"InferenceFunction": "Detector.py", "Framework": "Python"}, ModelPackageError, "does not hold it"),
        (
            {"Framework": "arcgis.learn.models._inferencing", "ModelFile": "m.pth"},
            ModelUnsupportedError,
            "arcgis.learn",
        ),
        ({"Framework": "TensorFlow"}, ModelUnsupportedError, "TensorFlow"),
    ],
)
def test_packages_of_other_kinds_are_refused_by_name(
    tmp_path: Path, members: dict[str, Any], expected: type[InferenceError], reason: str
) -> None:
    with pytest.raises(expected, match=reason):
        open_package(str(write_zip(tmp_path / "p.dlpk", good_entries(**members))))


# -- Fuzzing -----------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bytes_never_cause_anything_but_a_refusal(tmp_path: Path, data: st.DataObject) -> None:
    path = write_zip(tmp_path / "p.dlpk", good_entries())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        open_package(str(path)).sha256()
    except InferenceError as error:
        assert error.message  # both outcomes are right


SOUND = [json.dumps(emd(), indent=1), *(json.dumps(arcgis_emd(name, n_bands=4)) for name in ("MaskRCNN", "YOLOv3"))]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(SOUND), st.lists(st.tuples(st.floats(0, 1), st.text("{}[]:,\"'\\#/\n 0aN", max_size=3)), max_size=5)
)
def test_any_damage_to_a_definition_is_repaired_or_refused(text: str, cuts: list[tuple[float, str]]) -> None:
    for place, put in cuts:
        at = 1 + int(place * (len(text) - 1))
        text = text[:at] + put + text[at + 2 :]
    try:
        assert open_package(text).definition.classes
    except InferenceError as error:
        assert error.message  # both outcomes are right


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_as_json_or_refused(data: bytes) -> None:
    try:
        assert isinstance(read_json(data, "'x'"), dict)
    except ModelPackageError as error:
        assert "'x'" in error.message


@pytest.mark.parametrize("name", ["CON", "nul", "Aux.onnx", "com1", "LPT9.tar.gz", "COM¹.bin", "prn .txt", "conin$",
                                  "a.", "a ", "a. .", "..."])  # fmt: skip
def test_a_name_that_windows_changes_is_not_safe(name: str) -> None:
    assert not any(is_safe_name(path) for path in (name, f"folder/{name}", f"{name}/file"))


@pytest.mark.parametrize("name", ["console", "com", "com10", "null.txt", ".hidden", "a.con", " a", "a .b", "lpt-1"])
def test_a_name_like_one_that_windows_changes_is_safe(name: str) -> None:
    assert is_safe_name(name)


@given(st.lists(st.sampled_from(["a", "..", ".", "", "c:", "b*", "d\x01", "e\\f"]), min_size=1, max_size=4))
def test_a_safe_name_stays_inside(parts: list[str]) -> None:
    assert all(part == "a" for part in parts) == is_safe_name("/".join(parts))


def test_an_archive_with_two_ends_of_64_bits_is_refused(tmp_path: Path) -> None:
    data = write_zip(tmp_path / "a.dlpk", good_entries()).read_bytes()
    *_, n, n_bytes, start, _ = struct.unpack("<4s4H2LH", data[-22:])
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, n, n, n_bytes, start)
    for records, is_sound in ((record, True), (record * 2, False)):
        locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 22, 1)
        path = _write(tmp_path / "b.dlpk", data[:-22] + records + locator + data[-22:])
        with nullcontext() if is_sound else pytest.raises(ModelPackageError, match="directory is broken"):
            open_package(str(path))
