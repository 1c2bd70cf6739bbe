"""The worker's environment: what it inherits, how an interpreter is judged, how one is made."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from kestrel.inference.errors import WorkerStartError
from kestrel.inference.worker import environment
from kestrel.inference.worker.environment import (
    LIBRARY_FLOORS,
    MARKER,
    child_environment,
    create_environment,
    default_target,
    find_python,
    interpreter_in,
    probe,
    ready_interpreter,
)

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="uses scripts with a #! line")

GOOD = {name: f"__version__ = '{floor}'\n" for name, floor in LIBRARY_FLOORS.items()}
GOOD["rasterio"] += "__gdal_version__ = '3.10.3'\n"
GOOD["torch"] += """
class Properties:
    name, total_memory = "Test GPU", 8 * 2**30
class cuda:
    device_count = staticmethod(lambda: 1)
    get_device_properties = staticmethod(lambda index: Properties)
class backends:
    class mps:
        is_available = staticmethod(lambda: False)
"""


# -- What a child inherits


@pytest.mark.parametrize(
    "name",
    [
        "PYTHONPATH",
        "PYTHONHOME",
        "VIRTUAL_ENV",
        "PROJ_LIB",
        "PROJ_DATA",
        "GDAL_DATA",
        "GDAL_DRIVER_PATH",
        "GDAL_VRT_ENABLE_PYTHON",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "DYLD_INSERT_LIBRARIES",
        "QGIS_PREFIX_PATH",
        "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
        "PIP_TARGET",
        "SECRET_TOKEN",
    ],
)
def test_what_could_steer_the_worker_stays_outside(name: str) -> None:
    assert name not in child_environment({name: "1"})


@pytest.mark.parametrize(
    "name", ["HOME", "PATH", "TMPDIR", "LC_ALL", "https_proxy", "NO_PROXY", "CUDA_VISIBLE_DEVICES", "SystemRoot"]
)
def test_what_programs_need_comes_along(name: str) -> None:
    assert child_environment({name: "value"})[name] == "value"


def test_the_worker_gets_what_it_needs_whatever_the_user_had() -> None:
    child = child_environment({"PYTHONIOENCODING": "latin-1", "OMP_WAIT_POLICY": "ACTIVE"})
    assert child == {"PYTHONIOENCODING": "utf-8", "PYTHONSAFEPATH": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def test_certificates_are_kept_where_they_exist_and_dropped_where_not(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    child = child_environment({"SSL_CERT_FILE": str(bundle), "REQUESTS_CA_BUNDLE": str(tmp_path / "gone.pem")})
    assert child["SSL_CERT_FILE"] == str(bundle)
    assert "REQUESTS_CA_BUNDLE" not in child


def test_qgis_own_libraries_leave_the_path_on_windows() -> None:
    base = {"OSGEO4W_ROOT": "/qgis", "PATH": os.pathsep.join(["/qgis/bin", "/windows", "/qgis/apps/Qt5/bin"])}
    assert child_environment(base)["PATH"] == "/windows"


# -- What an interpreter can do


def make_interpreter(folder: Path, modules: dict[str, str]) -> str:
    """Make an environment that holds these modules and nothing else."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    interpreter = interpreter_in(folder)
    where = [str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip())
    for name, source in modules.items():
        (packages / f"{name}.py").write_text(source)
    return str(interpreter)


def test_an_interpreter_with_everything_is_usable(tmp_path: Path) -> None:
    report = probe(make_interpreter(tmp_path, GOOD))
    assert report.problems == []
    assert report.is_usable
    assert report.versions == {**LIBRARY_FLOORS, "gdal": "3.10.3"}
    assert [(device.name, device.title, device.memory) for device in report.devices] == [("cuda:0", "Test GPU", 2**33)]


@pytest.mark.slow
def test_the_projects_own_environment_is_usable(inference_python: str) -> None:
    report = probe(inference_python)
    assert report.problems == []
    assert report.versions.keys() == {*LIBRARY_FLOORS, "gdal"}


@pytest.mark.parametrize("library", list(LIBRARY_FLOORS))
def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path: Path, library: str) -> None:
    modules = {name: source for name, source in GOOD.items() if name != library}
    interpreter = make_interpreter(tmp_path, modules)
    (problem,) = probe(interpreter).problems
    assert problem.startswith(f"{library} is not installed.")
    assert f'"{interpreter}" -m pip install --upgrade "{library}>={LIBRARY_FLOORS[library]}"' in problem


@pytest.mark.parametrize(
    ("library", "version"), [("torch", "2.9.1+cu128"), ("onnxruntime", "1.23.2"), ("onnx", "1.20.0"), ("numpy", "1.25")]
)
def test_a_library_below_its_floor_is_a_problem(tmp_path: Path, library: str, version: str) -> None:
    source = GOOD[library].replace(LIBRARY_FLOORS[library], version, 1)
    (problem,) = probe(make_interpreter(tmp_path, {**GOOD, library: source})).problems
    assert problem.startswith(f"{library} {version} is too old.")


def test_a_torchvision_built_for_another_torch_is_recognised(tmp_path: Path) -> None:
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (problem,) = probe(make_interpreter(tmp_path, {**GOOD, "torchvision": broken})).problems
    assert "must come as a pair" in problem
    assert '--force-reinstall "torch>=2.10" "torchvision>=0.25"' in problem


def test_a_library_that_kills_the_interpreter_is_named(tmp_path: Path) -> None:
    problems = probe(make_interpreter(tmp_path, {**GOOD, "onnx": "import os\nos._exit(9)"})).problems
    assert len(problems) == 1
    assert "ended with code 9 while it imported onnx" in problems[0]


def test_a_library_that_hangs_is_named(tmp_path: Path) -> None:
    interpreter = make_interpreter(tmp_path, {**GOOD, "torch": "import time\ntime.sleep(60)"})
    (problem,) = probe(interpreter, timeout=2).problems
    assert "did not answer within 2 seconds while it imported torch" in problem


def test_a_library_that_greets_on_stdout_does_no_harm(tmp_path: Path) -> None:
    greeting = "print('Hello from', 'shapely')\n" + GOOD["shapely"]
    assert probe(make_interpreter(tmp_path, {**GOOD, "shapely": greeting})).is_usable


def test_a_missing_runtime_library_on_windows_has_its_own_remedy(tmp_path: Path) -> None:
    broken = "raise OSError('[WinError 1114] A dynamic link library (DLL) initialization routine failed')"
    (problem,) = probe(make_interpreter(tmp_path, {**GOOD, "onnxruntime": broken})).problems
    assert "Visual C++ Redistributable" in problem


def test_an_interpreter_that_does_not_exist_is_a_problem_not_an_exception(tmp_path: Path) -> None:
    report = probe(str(tmp_path / "python"))
    assert not report.is_usable
    assert "cannot be started" in report.problems[0]


@posix_only
def test_a_program_that_is_no_python_is_recognised(tmp_path: Path) -> None:
    program = write_program(tmp_path / "qgis", "#!/bin/sh\nexit 3\n")
    assert "is not a Python that can be used: it ended with code 3" in probe(str(program)).problems[0]


def test_the_users_python_variables_do_not_reach_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "json.py").write_text("raise SystemExit(5)")
    monkeypatch.setenv("PYTHONPATH", str(evil))
    monkeypatch.chdir(evil)
    assert probe(make_interpreter(tmp_path / "env", GOOD)).is_usable


def test_the_floors_are_those_of_the_requirements(repository: Path) -> None:
    text = (repository / "requirements" / "inference.in").read_text()
    stated = dict(re.findall(r"^([a-z]+)>=(\S+)", text, re.MULTILINE))
    assert {name: stated[name] for name in LIBRARY_FLOORS if name in stated} == {
        name: floor for name, floor in LIBRARY_FLOORS.items() if name in stated
    }


# -- Making an environment


def write_program(path: Path, source: str) -> Path:
    path.write_text(source)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


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
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)


@pytest.fixture
def project_uv(repository: Path) -> str:
    uv = environment.shutil.which("uv") or str(repository / "build" / "env" / "uv" / "bin" / "uv")
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
    monkeypatch.setattr(environment, "_candidates", lambda: iter(()))
    with pytest.raises(WorkerStartError, match="Install one"):
        create_environment(tmp_path / "env", requirements, None, print, lambda: False)


# -- Finding a Python, and the place


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
    monkeypatch.setattr(environment, "_candidates", lambda: iter((str(fake), sys.executable)))
    assert find_python() == sys.executable


def test_qgis_itself_is_never_started_as_a_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/qgis/qgis-bin")
    for platform in ("linux", "darwin", "win32"):
        assert "/opt/qgis/qgis-bin" not in list(environment._installed_pythons(platform))
    assert "/opt/qgis/qgis-bin" not in list(environment._candidates())


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/cache"}, "/cache/kestrel/environment"),
        ("linux", {}, "/home/ada/.cache/kestrel/environment"),
        ("darwin", {}, "/home/ada/Library/Caches/kestrel/environment"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/kestrel/environment"),
    ],
)
@posix_only
def test_the_managed_environment_lies_in_the_users_own_cache(
    monkeypatch: pytest.MonkeyPatch, platform: str, variables: dict[str, str], expected: str
) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/ada", **variables}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment.sys, "platform", platform)
    assert default_target().as_posix() == expected
