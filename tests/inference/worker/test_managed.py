"""Kestrel's own environment: how it is made, with which Python, and where it lies."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from kestrel.inference.errors import WorkerStartError
from kestrel.inference.versions import LIBRARY_FLOORS
from kestrel.inference.worker import managed
from kestrel.inference.worker.managed import (
    MARKER,
    create_environment,
    default_target,
    find_python,
    install_extra,
    installed_extras,
    interpreter_in,
    ready_interpreter,
)
from kestrel.inference.worker.probe import probe
from kestrel.tests.fixtures.interpreters import GOOD, make_interpreter, posix_only, write_program

# -- Making an environment


@pytest.fixture
def requirements(tmp_path: Path) -> Path:
    """Locked requirements: small stand-ins for the libraries, as wheels in a folder."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    lines = ["--no-index", f"--find-links {wheels.as_uri()}"]
    for name, source in GOOD.items():
        wheel = wheels / f"{name}-{LIBRARY_FLOORS[name]}-py3-none-any.whl"
        information = f"{name}-{LIBRARY_FLOORS[name]}.dist-info"
        files = {
            f"{name}.py": source,
            f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {LIBRARY_FLOORS[name]}\n",
            f"{information}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{path},sha256={record_hash(content)},{len(content)}\n" for path, content in files.items())
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, content in {**files, f"{information}/RECORD": f"{record}{information}/RECORD,,\n"}.items():
                archive.writestr(path, content)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"{name}=={LIBRARY_FLOORS[name]} \\\n    --hash=sha256:{digest}")
    path = tmp_path / "locked.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def record_hash(content: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).decode().rstrip("=")


@pytest.fixture
def no_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managed.shutil, "which", lambda name: None)


@pytest.fixture
def project_uv(repository: Path) -> str:
    uv = managed.shutil.which("uv") or str(repository / "build" / "env" / "uv" / "bin" / "uv")
    if not Path(uv).exists():
        pytest.skip("no uv")
    return uv


def test_uv_makes_an_environment_that_works(tmp_path: Path, requirements: Path, project_uv: str) -> None:
    lines: list[str] = []
    target = tmp_path / "cache" / "environment"
    made = create_environment(target, requirements, sys.executable, lines.append, lambda: False, uv=project_uv)
    assert made == str(interpreter_in(target))
    assert probe(made).is_usable
    assert ready_interpreter(target, requirements) == made
    assert any("torch" in line for line in lines)
    assert sorted(path.name for path in target.parent.iterdir()) == ["environment"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_uv")
def test_venv_and_pip_make_the_same_where_there_is_no_uv(tmp_path: Path, requirements: Path) -> None:
    target = tmp_path / "environment"
    made = create_environment(target, requirements, sys.executable, lambda line: None, lambda: False)
    assert made == str(interpreter_in(target))
    assert probe(made).is_usable


def test_a_wheel_that_was_changed_is_refused_and_nothing_is_left(
    tmp_path: Path, requirements: Path, project_uv: str
) -> None:
    changed = re.sub(r"(torch==\S+ \\\n\s+--hash=sha256:)\w{8}", r"\g<1>00000000", requirements.read_text())
    requirements.write_text(changed)
    target = tmp_path / "cache" / "environment"
    with pytest.raises(WorkerStartError, match="failed"):
        create_environment(target, requirements, sys.executable, lambda line: None, lambda: False, uv=project_uv)
    assert list(target.parent.iterdir()) == []
    assert ready_interpreter(target, requirements) is None


def test_what_was_there_survives_a_failure_and_is_replaced_by_a_success(
    tmp_path: Path, requirements: Path, project_uv: str
) -> None:
    target = tmp_path / "environment"
    old = make_interpreter(target, GOOD)
    with pytest.raises(WorkerStartError):
        create_environment(target, tmp_path / "none.txt", sys.executable, print, lambda: False, uv=project_uv)
    assert probe(old).is_usable
    create_environment(target, requirements, sys.executable, print, lambda: False, uv=project_uv)
    assert json.loads((target / MARKER).read_text())["torch_backend"] == ""


def test_what_was_there_comes_back_when_the_new_one_cannot_be_moved_in(
    tmp_path: Path, requirements: Path, project_uv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "cache" / "environment"
    old = make_interpreter(target, GOOD)
    rename = Path.rename

    def stubborn(path: Path, new: Path) -> Path:
        if path.name == "env":
            raise PermissionError(13, "Permission denied")
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", stubborn)
    with pytest.raises(WorkerStartError, match="cannot be replaced: Permission denied"):
        create_environment(target, requirements, sys.executable, print, lambda: False, uv=project_uv)
    assert probe(old).is_usable
    assert list(target.parent.iterdir()) == [target]


def test_an_old_environment_that_cannot_come_back_is_kept_and_named(
    tmp_path: Path, requirements: Path, project_uv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "cache" / "environment"
    make_interpreter(target, GOOD)
    rename = Path.rename

    def stubborn(path: Path, new: Path) -> Path:
        if new == target:
            raise PermissionError(13, "Permission denied")
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", stubborn)
    with pytest.raises(WorkerStartError) as caught:
        create_environment(target, requirements, sys.executable, print, lambda: False, uv=project_uv)
    (kept,) = target.parent.iterdir()
    assert str(kept) in caught.value.hint
    assert interpreter_in(kept).exists()


def test_a_folder_with_other_things_in_it_is_never_replaced(tmp_path: Path, requirements: Path) -> None:
    (tmp_path / "thesis.odt").touch()
    with pytest.raises(WorkerStartError, match="something else"):
        create_environment(tmp_path, requirements, sys.executable, print, lambda: False)
    assert (tmp_path / "thesis.odt").exists()


def test_an_environment_for_other_requirements_is_not_ready(
    tmp_path: Path, requirements: Path, project_uv: str
) -> None:
    target = tmp_path / "environment"
    create_environment(target, requirements, sys.executable, print, lambda: False, uv=project_uv)
    assert ready_interpreter(target, requirements, "cpu") is None
    requirements.write_bytes(requirements.read_bytes().replace(b"\n", b"\r\n"))
    assert ready_interpreter(target, requirements) is not None
    requirements.write_text(requirements.read_text() + "# newer\n")
    assert ready_interpreter(target, requirements) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cancelling_kills_the_installer_and_leaves_nothing(tmp_path: Path, requirements: Path) -> None:
    pid_file = tmp_path / "pid"
    uv = write_program(tmp_path / "uv", f"#!/bin/sh\nsleep 60 &\necho $! > {pid_file}\necho downloading\nwait\n")
    lines: list[str] = []
    target = tmp_path / "cache" / "environment"
    started = time.monotonic()
    made = create_environment(target, requirements, sys.executable, lines.append, lambda: bool(lines), uv=str(uv))
    assert made is None
    assert time.monotonic() - started < 10
    assert list(target.parent.iterdir()) == []
    assert not is_running(int(pid_file.read_text()))


def is_running(pid: int) -> bool:
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return False
        if state == "Z":  # dead, and only waiting for its parent to notice
            return False
        time.sleep(0.1)
    return True


@posix_only
def test_a_torch_backend_takes_the_pair_from_its_index_and_all_else_with_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    log, rest = tmp_path / "log", tmp_path / "rest.txt"
    uv = write_program(
        tmp_path / "uv",
        f'#!/bin/sh\necho "$@" >> {log}\nfor last; do :; done\n[ -f "$last" ] && cp "$last" {rest}\nexit 0\n',
    )
    locked = repository / "requirements" / "inference.txt"
    with pytest.raises(WorkerStartError, match="does not work"):  # the stand-in for uv installs nothing
        create_environment(
            tmp_path / "environment", locked, sys.executable, print, lambda: False, uv=str(uv), torch_backend="cpu"
        )
    _, pair, others = log.read_text().splitlines()
    assert re.search(r"--torch-backend cpu torch>=2\.10,<=\S+ torchvision>=0\.25,<=\S+$", pair)
    assert "--no-deps --require-hashes" in others
    names = re.findall(r"^([a-z0-9-]+)==", rest.read_text(), re.MULTILINE)
    assert {"onnxruntime", "rasterio", "numpy"} <= set(names)
    assert not [name for name in names if name.startswith(("torch", "nvidia", "cuda", "triton"))]


@pytest.mark.usefixtures("no_uv")
def test_a_torch_backend_without_uv_is_refused(tmp_path: Path, requirements: Path) -> None:
    with pytest.raises(WorkerStartError, match="needs the tool uv"):
        create_environment(tmp_path / "env", requirements, None, print, lambda: False, torch_backend="cpu")


def test_where_no_python_is_found_the_way_out_is_said(
    tmp_path: Path, requirements: Path, monkeypatch: pytest.MonkeyPatch, no_uv: None
) -> None:
    monkeypatch.setattr(managed, "_candidates", lambda: iter(()))
    with pytest.raises(WorkerStartError, match="Install one"):
        create_environment(tmp_path / "env", requirements, None, print, lambda: False)


# -- Adding an optional library


def locked_wheel(folder: Path, name: str, source: str, version: str = "2.0", digest: str = "") -> Path:
    """Write a wheel and the locked requirements for it."""
    wheels = folder / "extra"
    wheels.mkdir()
    wheel, information = wheels / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": source,
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={record_hash(content)},{len(content)}\n" for path, content in files.items())
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in {**files, f"{information}/RECORD": f"{record}{information}/RECORD,,\n"}.items():
            archive.writestr(path, content)
    digest = digest or hashlib.sha256(wheel.read_bytes()).hexdigest()
    locked = folder / f"{name}.txt"
    locked.write_text(f"--no-index\n--find-links {wheels.as_uri()}\n{name}=={version} \\\n    --hash=sha256:{digest}\n")
    return locked


def imports(interpreter: str, name: str) -> bool:
    return subprocess.run([interpreter, "-c", f"import {name}"], capture_output=True, check=False).returncode == 0


def test_an_extra_is_added_to_the_environment_that_is_there(tmp_path: Path, project_uv: str) -> None:
    interpreter = make_interpreter(tmp_path / "environment", GOOD)
    lines: list[str] = []
    locked = locked_wheel(tmp_path, "tensorfake", "")
    assert install_extra(interpreter, locked, lines.append, lambda: False, uv=project_uv)
    assert imports(interpreter, "tensorfake")
    assert probe(interpreter).is_usable
    assert any("tensorfake" in line for line in lines)


def test_an_environment_that_is_made_anew_gets_the_extras_of_the_old_one(
    tmp_path: Path, requirements: Path, project_uv: str
) -> None:
    target, locked = tmp_path / "environment", locked_wheel(tmp_path, "tensorfake", "")
    made = create_environment(target, requirements, sys.executable, print, lambda: False, uv=project_uv)
    assert installed_extras(target) == ()
    assert install_extra(str(made), locked, print, lambda: False, uv=project_uv)
    assert install_extra(str(made), locked, print, lambda: False, uv=project_uv)
    assert installed_extras(target) == ("tensorfake",)
    again = create_environment(
        target, requirements, sys.executable, print, lambda: False, uv=project_uv, extras=[locked]
    )
    assert (installed_extras(target), imports(str(again), "tensorfake")) == (("tensorfake",), True)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nonsense"])
def test_a_damaged_list_of_extras_names_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "kestrel-extras.json").write_text(text)
    assert installed_extras(tmp_path) == ()


@pytest.mark.slow
@pytest.mark.usefixtures("no_uv")
def test_an_extra_is_added_without_uv_to_an_environment_that_lacks_pip(tmp_path: Path) -> None:
    interpreter = make_interpreter(tmp_path / "environment", GOOD)
    assert not imports(interpreter, "pip")
    assert install_extra(interpreter, locked_wheel(tmp_path, "tensorfake", ""), print, lambda: False)
    assert imports(interpreter, "tensorfake")


def test_an_extra_that_was_changed_is_refused(tmp_path: Path, project_uv: str) -> None:
    interpreter = make_interpreter(tmp_path / "environment", GOOD)
    locked = locked_wheel(tmp_path, "tensorfake", "", digest="0" * 64)
    with pytest.raises(WorkerStartError, match="Installing tensorfake failed"):
        install_extra(interpreter, locked, print, lambda: False, uv=project_uv)
    assert not imports(interpreter, "tensorfake")


def test_an_extra_that_breaks_the_environment_is_told(tmp_path: Path, project_uv: str) -> None:
    interpreter = make_interpreter(tmp_path / "environment", {**GOOD, "onnx": "import tensorfake_is_absent"})
    with pytest.raises(WorkerStartError, match="does not work with tensorfake") as caught:
        install_extra(interpreter, locked_wheel(tmp_path, "tensorfake", ""), print, lambda: False, uv=project_uv)
    assert "onnx" in caught.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_cancelling_an_extra_kills_the_installer(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    uv = write_program(tmp_path / "uv", f"#!/bin/sh\nsleep 60 &\necho $! > {pid_file}\necho downloading\nwait\n")
    interpreter = make_interpreter(tmp_path / "environment", {})
    lines: list[str] = []
    assert not install_extra(interpreter, tmp_path / "extra.txt", lines.append, lambda: bool(lines), uv=str(uv))
    assert not is_running(int(pid_file.read_text()))


def test_an_extra_needs_an_environment(tmp_path: Path) -> None:
    with pytest.raises(WorkerStartError, match="no inference environment"):
        install_extra(str(tmp_path / "python"), tmp_path / "extra.txt", print, lambda: False)


@pytest.mark.parametrize("extra", ["tensorflow", "transformers"])
def test_the_locked_extra_changes_no_library_of_the_environment(repository: Path, extra: str) -> None:
    locked = {
        name: dict(re.findall(r"^([a-z0-9-]+)==(\S+(?: ;[^\\\n]*[^\\\n ])?)", text, re.MULTILINE))
        for name in ("inference", extra)
        for text in [(repository / "requirements" / f"{name}.txt").read_text()]
    }
    shared = set(locked["inference"]) & set(locked[extra])
    assert "numpy" in shared
    assert [name for name in sorted(shared) if locked["inference"][name] != locked[extra][name]] == []
    assert extra in locked[extra]


# -- Finding a Python, and the place


@pytest.mark.slow
def test_a_python_that_serves_is_found_here() -> None:
    found = find_python()
    assert found is not None
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    assert re.match(r"Python 3\.1[123]\.", version)


@posix_only
def test_a_program_that_only_pretends_to_be_a_python_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = write_program(tmp_path / "python3.12", "#!/bin/sh\necho no\n")
    monkeypatch.setattr(managed, "_candidates", lambda: iter((str(fake), sys.executable)))
    assert find_python() == sys.executable


def test_qgis_itself_is_never_started_as_a_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/qgis/qgis-bin")
    for platform in ("linux", "darwin", "win32"):
        assert "/opt/qgis/qgis-bin" not in list(managed._installed_pythons(platform))
    assert "/opt/qgis/qgis-bin" not in list(managed._candidates())


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/cache"}, "/cache/kestrel/environment"),
        ("linux", {}, "/home/ada/.cache/kestrel/environment"),
        ("darwin", {}, "/home/ada/Library/Caches/kestrel/environment"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/kestrel/environment"),
        ("linux", {"KESTREL_CACHE": "/elsewhere", "XDG_CACHE_HOME": "/cache"}, "/elsewhere/environment"),
    ],
)
@posix_only
def test_the_managed_environment_lies_in_the_users_own_cache(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    for name in ("KESTREL_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/ada", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(managed.sys, "platform", platform)
    assert default_target().as_posix() == expected
