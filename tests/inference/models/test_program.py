from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from kestrel.inference.errors import ModelPackageError, UntrustedCodeError
from kestrel.inference.models import program as program_module
from kestrel.inference.models.package import FolderMembers
from kestrel.inference.models.program import (
    DEFINITION_FILE,
    MAX_FILES,
    extract_program,
    placed,
    program_files,
    program_sha256,
)
from kestrel.tests.fixtures.packages import write_zip
from kestrel.tests.fixtures.raster_functions import archive_package, folder_package, make_package, text_package

FILES = {"Finder.py": b"class Finder: pass\n", "prf_utils.py": b"x = 1\n", "lib/deep/more.py": b"y = 2\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    for name, content in {**FILES, "Finder.emd": b"{}"}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def names(package: object) -> list[str]:
    return [file.name for file in program_files(package)]  # type: ignore[arg-type]


def test_all_files_below_a_loose_definition_belong_to_its_program(folder: Path) -> None:
    package = folder_package(folder)
    assert names(package) == ["Finder.emd", "Finder.py", "lib/deep/more.py", "prf_utils.py"]
    assert {file.name: file.size for file in program_files(package)}["prf_utils.py"] == 6


def test_all_members_of_an_archive_belong_to_its_program(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.dlpk", [("Finder.emd", "{}"), *FILES.items(), ("a/b.bin", b"1")])
    assert names(archive_package(path)) == ["Finder.emd", "Finder.py", "a/b.bin", "lib/deep/more.py", "prf_utils.py"]


def test_the_same_files_have_the_same_hash_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.dlpk", [(name, (folder / name).read_bytes()) for name in [*FILES, "Finder.emd"]])
    assert program_sha256(archive_package(path)) == program_sha256(folder_package(folder))


@pytest.mark.parametrize("name", ["prf_utils.py", "lib/deep/more.py", "Finder.emd"])
def test_a_change_of_any_file_changes_the_hash(folder: Path, name: str) -> None:
    before = program_sha256(folder_package(folder))
    with (folder / name).open("ab") as stream:
        stream.write(b"\n")
    assert program_sha256(folder_package(folder)) != before


def test_a_new_file_and_a_new_name_change_the_hash(folder: Path) -> None:
    before = program_sha256(folder_package(folder))
    (folder / "json.py").write_bytes(b"")
    with_new_file = program_sha256(folder_package(folder))
    (folder / "json.py").rename(folder / "torch.py")
    assert len({before, with_new_file, program_sha256(folder_package(folder))}) == 3


def test_caches_and_version_control_are_left_out(folder: Path) -> None:
    before = program_sha256(folder_package(folder))
    for name in ("__pycache__/Finder.pyc", ".git/HEAD", "lib/__pycache__/x.pyc"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"anything")
    assert program_sha256(folder_package(folder)) == before


def test_what_is_copied_is_what_was_consented_to(folder: Path, tmp_path: Path) -> None:
    package = folder_package(folder)
    copy = extract_program(package, tmp_path / "copy", program_sha256(package))
    assert (copy / "lib/deep/more.py").read_bytes() == b"y = 2\n"
    assert placed(package, copy, ".\\Finder.py") == copy / "Finder.py"
    assert not (copy / "__pycache__").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such rights")
def test_the_copy_is_private(folder: Path, tmp_path: Path) -> None:
    package = folder_package(folder)
    copy = extract_program(package, tmp_path / "copy", program_sha256(package))
    for place in (copy, copy / "lib", copy / "lib/deep"):
        assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_a_file_that_changed_after_the_consent_is_not_left_in_the_copy(folder: Path, tmp_path: Path) -> None:
    package = folder_package(folder)
    allowed = program_sha256(package)
    (folder / "prf_utils.py").write_bytes(b"evil()\n")
    with pytest.raises(UntrustedCodeError, match="not the one that was allowed") as caught:
        extract_program(package, tmp_path / "copy", allowed)
    assert f"ALLOW_PACKAGE_CODE={program_sha256(package)}" in caught.value.hint
    assert not (tmp_path / "copy").exists()


def test_a_link_in_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_bytes(b"")
    (folder / "linked.py").symlink_to(tmp_path / "elsewhere.py")
    with pytest.raises(ModelPackageError, match=r"linked\.py"):
        program_sha256(folder_package(folder))


def test_a_folder_with_too_many_files_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_module, "MAX_FILES", 3)
    with pytest.raises(ModelPackageError, match="folder of their own"):
        program_files(folder_package(folder))
    assert MAX_FILES == 2000


def test_a_program_that_is_too_large_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_module, "MAX_TOTAL_BYTES", 20)
    with pytest.raises(ModelPackageError, match="8 GB"):
        program_sha256(folder_package(folder))


def test_a_folder_inside_a_package_is_the_programs_root(folder: Path, tmp_path: Path) -> None:
    package = make_package(FolderMembers(tmp_path), "Finder.py", root="model/")
    assert "model/lib/deep/more.py" in names(package)
    copy = extract_program(package, tmp_path / "copy", program_sha256(package))
    assert placed(package, copy, "Finder.py") == copy / "model/Finder.py"


def test_a_definition_given_as_text_brings_the_folder_of_its_program_and_its_weights(
    folder: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "far" / "w.pth"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    package = text_package(folder / "Finder.py", weights)
    assert {DEFINITION_FILE, "Finder.py", "prf_utils.py", ".kestrel/weights/w.pth"} <= set(names(package))
    copy = extract_program(package, tmp_path / "copy", program_sha256(package))
    assert placed(package, copy, str(weights)).read_bytes() == b"weights"
    assert placed(package, copy, str(folder / "Finder.py")) == copy / "Finder.py"
    assert "InferenceFunction" in json.loads((copy / DEFINITION_FILE).read_text())


def test_of_torchscript_only_the_file_and_the_definition_count(folder: Path, tmp_path: Path) -> None:
    (folder / "net.pt").write_bytes(b"net")
    package = make_package(FolderMembers(folder), "net.pt", kind="torchscript")
    before = program_sha256(package)
    assert names(package) == [DEFINITION_FILE, "net.pt"]
    (folder / "prf_utils.py").write_bytes(b"changed")
    assert program_sha256(package) == before
    assert placed(package, extract_program(package, tmp_path / "copy", before), "net.pt").read_bytes() == b"net"


def test_a_damaged_member_is_told(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.dlpk", [("Finder.emd", "{}"), ("Finder.py", b"x = 1\n" * 100)])
    package = archive_package(path)
    data = bytearray(path.read_bytes())
    place = data.find(b"Finder.py") + len("Finder.py")
    data[place : place + 10] = b"\xff" * 10
    path.write_bytes(data)
    with pytest.raises(ModelPackageError, match=r"Finder\.py"):
        program_sha256(package)


def test_what_python_compiled_is_neither_hashed_nor_copied(tmp_path: Path) -> None:
    # A compiled file may say something else than the source that people look at, and Python would run it.
    compiled = [("__pycache__/Finder.cpython-311.pyc", b"evil"), ("lib/__pycache__/more.cpython-311.pyc", b"evil")]
    plain = archive_package(write_zip(tmp_path / "plain.dlpk", [("Finder.emd", "{}"), *FILES.items()]))
    package = archive_package(write_zip(tmp_path / "m.dlpk", [("Finder.emd", "{}"), *FILES.items(), *compiled]))
    assert program_sha256(package) == program_sha256(plain)
    copy = extract_program(package, tmp_path / "copy", program_sha256(package))
    assert [] == list(copy.rglob("*.pyc"))


def test_two_definitions_in_one_folder_are_two_programs(folder: Path) -> None:
    first, second = folder_package(folder), folder_package(folder, "prf_utils.py")
    assert names(first) == names(second)
    assert program_sha256(first) != program_sha256(second)
