from __future__ import annotations

import collections
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import (
    InferenceError,
    ModelPackageError,
    ModelUnsupportedError,
    UntrustedCodeError,
)
from kestrel.inference.models import checkpoint
from kestrel.inference.models.checkpoint import read_checkpoint
from kestrel.tests.fixtures import evil_pickles
from kestrel.tests.fixtures.evil_pickles import (
    GOOD,
    MARKER,
    Canary,
    EvilFile,
    call,
    corpus,
    items,
    legacy,
    legacy_storage,
    mapping,
    name_of,
    number,
    numbers,
    payloads,
    state,
    storage,
    tensor,
    text,
    zipped,
)

CONTAINERS = {"zip": True, "legacy": False}
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="memory is capped and measured through /proc")


def save(content: Any, path: Path, container: str = "zip", **options: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=CONTAINERS[container], **options)
    return path


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def bits(values: torch.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    """Give type, shape and the bytes of the numbers."""
    values = values.detach().contiguous()
    return str(values.dtype), tuple(values.shape), values.reshape(-1).view(torch.uint8).numpy().tobytes()


def read_bits(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = {}
    for name, entry in read_checkpoint(path, path.name).items():
        array = entry.numpy()
        assert (name, entry.shape, entry.nbytes) == (entry.name, array.shape, array.nbytes)
        assert array.flags.c_contiguous and array.flags.writeable
        found[name] = f"torch.{entry.dtype}", array.shape, array.tobytes()
    return found


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
    return torch.nn.ModuleDict({"body": torch.nn.Sequential(block), "tied": block[0], "head": torch.nn.Linear(4, 2)})


def one_cycle_state(trained: torch.nn.Module) -> dict[str, Any]:
    """Give an optimizer's state as fastai's one-cycle schedule leaves it: with numpy's numbers in it."""
    optimizer = torch.optim.AdamW(trained.parameters(), lr=0.1)
    trained["body"](torch.rand(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = np.float64(0.003)
        group["betas"] = (np.float64(0.95), 0.99)
    return optimizer.state_dict()


# -- What is read ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_bare_state_dict_is_read_bit_for_bit(tmp_path: Path, container: str, protocol: int) -> None:
    saved = network().state_dict()
    path = save(saved, tmp_path / "m.pth", container, pickle_protocol=protocol)
    assert {name: bits(value) for name, value in saved.items()} == read_bits(path)
    assert list(saved) == list(read_checkpoint(path, "m.pth"))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict", "net", "ema"])
def test_the_state_dict_is_found_beside_an_optimizer_with_numbers_of_numpy(
    tmp_path: Path, container: str, key: str
) -> None:
    trained = network()
    content = {"epoch": 3, "opt": one_cycle_state(trained), key: trained.state_dict(), "lr": np.float64(0.1)}
    path = save(content, tmp_path / "m.pth", container)
    assert {name: bits(value) for name, value in trained.state_dict().items()} == read_bits(path)


def test_the_optimizer_of_such_a_file_stops_torch_itself(tmp_path: Path) -> None:
    path = save({"model": {}, "opt": one_cycle_state(network())}, tmp_path / "m.pth")
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        torch.load(path, weights_only=True)


BASE = torch.arange(60, dtype=torch.float32)
TENSORS: dict[str, torch.Tensor] = {
    "float64": BASE.double() / 7, "float32": BASE / 7, "half": BASE.half(), "bfloat16": (BASE / 7).bfloat16(),
    "int64": BASE.long() - 2**40, "int32": BASE.int() - 30, "int16": BASE.short(), "int8": BASE.char() - 30,
    "uint8": BASE.byte(), "bool": BASE > 30, "scalar": torch.tensor(2.5), "counter": torch.tensor(7),
    "empty": torch.zeros(0, 4), "empty in the middle": torch.zeros(3, 0, 2), "not a number": torch.tensor([torch.nan]),
    "row": BASE.view(6, 10)[2], "column": BASE.view(6, 10)[:, 3], "every second": BASE[3:20:2],
    "transposed": BASE.view(6, 10).t(), "permuted": BASE.view(3, 4, 5).permute(2, 0, 1),
    "channels last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 5), "strided bfloat16": BASE.bfloat16()[::3],
    "strided bool": (BASE > 30).view(6, 10).t(), "parameter": torch.nn.Parameter(BASE.clone()),
    "buffer": torch.nn.Buffer(BASE.clone()), "one axis of one": BASE[:1].view(1, 1, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", TENSORS)
def test_each_type_and_layout_is_read_bit_for_bit(tmp_path: Path, container: str, name: str) -> None:
    path = save({"first": BASE.clone(), name: TENSORS[name]}, tmp_path / "m.pth", container)
    assert bits(TENSORS[name]) == read_bits(path)[name]


def test_numbers_are_numpys_and_only_bfloat16_comes_as_bits(tmp_path: Path) -> None:
    found = read_checkpoint(save(TENSORS, tmp_path / "m.pth"), "m.pth")
    types = {name: found[name].numpy().dtype for name in ("half", "bfloat16", "bool", "int64", "float32")}
    assert {"half": "<f2", "bfloat16": "<u2", "bool": "|b1", "int64": "<i8", "float32": "<f4"} == {
        name: dtype.str for name, dtype in types.items()
    }
    assert "bfloat16" == found["bfloat16"].dtype


@pytest.mark.parametrize("container", CONTAINERS)
def test_tensors_that_share_their_numbers_are_read_apart(tmp_path: Path, container: str) -> None:
    shared = {"all": BASE, "front": BASE[:10], "grid": BASE.view(6, 10), "back": BASE[50:]}
    path = save(shared, tmp_path / "m.pth", container)
    assert {name: bits(value) for name, value in shared.items()} == read_bits(path)
    found = read_checkpoint(path, "m.pth")
    first = found["all"].numpy()
    first[:] = 0
    assert 9 == found["front"].numpy()[9]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("extra", [
    {"version": 2}, {"num_batches_tracked": 7, "note": "hello", "nothing": None, "yes": True},
    {"extra_state": {"scale": [1, 2]}}, {"object": collections.Counter()},
])  # fmt: skip
def test_what_is_no_tensor_in_a_state_dict_is_left_out(tmp_path: Path, container: str, extra: dict[str, Any]) -> None:
    saved = {f"w{i}": BASE for i in range(6)}
    path = save({**saved, **extra}, tmp_path / "m.pth", container)
    assert list(saved) == list(read_checkpoint(path, "m.pth"))


@pytest.mark.parametrize("container", CONTAINERS)
def test_parameters_with_attributes_are_plain_tensors(tmp_path: Path, container: str) -> None:
    marked = torch.nn.Parameter(BASE.clone())
    marked.is_norm = True  # type: ignore[attr-defined]
    assert bits(BASE) == read_bits(save({"w": marked}, tmp_path / "m.pth", container))["w"]


def test_tensors_of_a_derived_class_are_plain_tensors(tmp_path: Path) -> None:
    from_type, plain = name_of("torch._tensor", "_rebuild_from_type_v2"), name_of("torch._utils", "_rebuild_tensor_v2")
    arguments = tensor()[len(plain) : -1]
    pickle_ = state(x=call(from_type, plain, name_of("a", "Marked"), arguments, mapping({})))
    assert GOOD == read_bits(write(tmp_path / "m.pth", zipped(pickle_)))["x"][2]


def test_an_ordered_mapping_of_python_2_is_read(tmp_path: Path) -> None:
    pairs = b"](" + b"](U\x01w" + tensor() + b"e" + b"e"
    path = write(tmp_path / "m.pth", zipped(call(name_of("collections", "OrderedDict"), pairs)))
    assert {"w": ("torch.float32", (4,), GOOD)} == read_bits(path)


def test_old_tensors_without_hooks_are_read(tmp_path: Path) -> None:
    arguments = items(storage(), number(1), numbers(3), numbers(1))
    old = name_of("torch._utils", "_rebuild_tensor") + arguments + b"R"
    path = write(tmp_path / "m.pth", zipped(mapping({"w": old})))
    assert {"w": ("torch.float32", (3,), GOOD[4:])} == read_bits(path)


def test_views_of_storages_in_old_files_are_read(tmp_path: Path) -> None:
    view = items(text("1"), number(1), number(3))
    old = mapping({"w": tensor(legacy_storage(view=view), offset=1, size=numbers(2)), "v": tensor(legacy_storage())})
    found = read_bits(write(tmp_path / "m.pth", legacy(old)))
    assert (GOOD[8:], GOOD) == (found["w"][2], found["v"][2])


@pytest.mark.parametrize("folder", ["archive", "best_model", "x", "ä b"])
def test_the_archives_folder_may_have_any_name(tmp_path: Path, folder: str) -> None:
    path = save({"w": BASE}, tmp_path / "m.pth")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "n.pth", "w") as target:
        for info in source.infolist():
            target.writestr(f"{folder}/{info.filename.partition('/')[2]}", source.read(info))
    assert bits(BASE) == read_bits(tmp_path / "n.pth")["w"]


@pytest.mark.slow
def test_an_archive_of_more_members_than_16_bits_count_is_read(tmp_path: Path) -> None:
    storages = {str(i): GOOD for i in range(66_000)}
    path = write(tmp_path / "m.pth", zipped(state(), storages=storages))
    assert {"w": ("torch.float32", (4,), GOOD)} == read_bits(path)


def test_the_extension_does_not_matter(tmp_path: Path) -> None:
    assert ["w"] == list(read_checkpoint(save({"w": BASE}, tmp_path / "weights.onnx"), "weights.onnx"))


@pytest.mark.shared_data
def test_a_real_old_checkpoint_is_read_as_torch_reads_it(shared_data: Path) -> None:
    path = shared_data / "models" / "ultraface_RFB-320.pth"
    expected = torch.load(path, map_location="cpu", weights_only=True)
    assert len(expected) > 200
    assert {name: bits(value) for name, value in expected.items()} == read_bits(path)


@linux_only
def test_reading_takes_no_more_memory_than_a_tensor_at_a_time(tmp_path: Path) -> None:
    path = save({f"w{i}": torch.zeros(2**21) for i in range(20)}, tmp_path / "m.pth")  # 8 MB each
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, resource, pathlib\n"
        "from kestrel.inference.models.checkpoint import read_checkpoint\n"
        "path = pathlib.Path(sys.argv[2])\n"
        "np.fromfile(path, 'u1', 10)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "sizes = [tensor.numpy().nbytes for tensor in read_checkpoint(path, 'm').values()]\n"
        "print(sum(sizes), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    output = run_python("-c", program, plugins(), str(path))
    n_bytes, grown = (int(word) for word in output.split())
    assert 160 * 2**20 == n_bytes and grown * 1024 < 25 * 2**20


def test_the_reader_brings_no_pickle_and_no_torch() -> None:
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import kestrel.inference.models.checkpoint\n"
        "print(sorted({'pickle', '_pickle', 'pickletools', 'torch', 'numpy'} & set(sys.modules)))\n"
    )
    assert "[]" == run_python("-I", "-S", "-c", program, plugins()).strip()


def test_no_source_of_the_plugin_can_unpickle_freely(repository: Path) -> None:
    """The words themselves are looked for."""
    for path in [*repository.glob("*.py"), *(repository / "inference").rglob("*.py"),
                 *(repository / "processing_provider").rglob("*.py"), *(repository / "ui").rglob("*.py")]:  # fmt: skip
        for line in path.read_text().splitlines():
            words = line.strip()
            assert not words.startswith(("import pickle", "from pickle", "import dill", "import joblib")), path
            assert "torch.load(" not in words and "weights_only=False" not in words, path
            assert "allow_pickle=True" not in words, path


def plugins() -> str:
    return str(Path(checkpoint.__file__).parents[3])


def run_python(*arguments: str, **options: Any) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options)
    assert 0 == done.returncode, done.stderr[-2000:]
    return done.stdout


# -- What is refused ---------------------------------------------------------------------------------------------------

FROZEN_GRAPH = b"\x0a\x1f\x0a\x0cimage_tensor\x12\x0bPlaceholder\x2a\x02"

FOREIGN: dict[str, tuple[bytes, type[InferenceError], str]] = {
    "empty": (b"", ModelPackageError, "is empty.*again"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", ModelPackageError, "Git LFS.*git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><html><head>", ModelPackageError, "web page.*Download the file itself"),
    "web page in capitals": (b"<HTML>", ModelPackageError, "web page"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(40), ModelPackageError, "Keras.*ONNX"),
    "safetensors": (b"\x02" + bytes(7) + b"{}", ModelPackageError, r"safetensors.*\.safetensors"),
    "onnx": (b"\x08\x08\x12\x07pytorch" + bytes(40), ModelPackageError, "ONNX model.*framework to ONNX"),
    "saved model": (b"\x08\x01\x12\x20" + bytes(40), ModelUnsupportedError, "TensorFlow"),
    "frozen graph": (FROZEN_GRAPH, ModelUnsupportedError, "TensorFlow"),
    "tflite": (b"\x1c\x00\x00\x00TFL3", ModelUnsupportedError, "TensorFlow"),
    "tar": (evil_pickles.tar(), ModelPackageError, "tar container of PyTorch before 0.1.10.*save the state dict again"),
    "numpy": (b"\x93NUMPY\x01\x00", ModelPackageError, "numpy array"),
    "gzip": (b"\x1f\x8b\x08" + bytes(30), ModelPackageError, "gzip.*Unpack"),
    "text": (b"hello", ModelPackageError, "no PyTorch checkpoint"),
    "one byte": (b"\x80", ModelPackageError, "damaged"),
    "a picture": (b"\xff\xd8\xff\xe0" + bytes(300), ModelPackageError, "no PyTorch checkpoint"),
    "another zip": (zipped(b"N").replace(b"data.pkl", b"data.txt"), ModelPackageError, "zip archive.*archive/"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN)
def test_another_file_under_that_name_is_told_as_what_it_is(tmp_path: Path, name: str) -> None:
    content, expected, reason = FOREIGN[name]
    with pytest.raises(expected, match=f"(?s)'m.pth'.*{reason}|{reason}") as caught:
        read_checkpoint(write(tmp_path / "x.pth", content), "m.pth")
    assert caught.value.hint and "m.pth" in caught.value.message


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_whole_network_is_refused_with_the_way_out(tmp_path: Path, container: str) -> None:
    for content in (torch.nn.Linear(2, 2), {"model": torch.nn.Linear(2, 2), "epoch": 3}):
        with pytest.raises(UntrustedCodeError, match=r"object \(torch\.nn\.modules\.linear\.Linear\).*state_dict"):
            read_checkpoint(save(content, tmp_path / "m.pth", container), "m.pth")


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_torchscript_is_refused_whatever_its_name(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "m.pth"))
    with pytest.raises(UntrustedCodeError, match=r"'m\.pth' is TorchScript.*ONNX"):
        read_checkpoint(tmp_path / "m.pth", "m.pth")


@pytest.mark.parametrize("content", [
    [BASE], BASE, 7, "text", {}, {"a": 1}, {"model": {}}, {"model": {"a": {"b": BASE}}}, {1: BASE},
    {"a": BASE, 1: BASE}, {"epoch": 1, "lr": BASE, "other": "x"},
])  # fmt: skip
@pytest.mark.parametrize("container", CONTAINERS)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, container: str, content: Any) -> None:
    with pytest.raises(ModelPackageError, match=r"no state dict.*torch\.save"):
        read_checkpoint(save(content, tmp_path / "m.pth", container), "m.pth")


RARE: dict[str, Callable[[], torch.Tensor]] = {
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "conjugated": lambda: torch.zeros(3, dtype=torch.complex64).conj(),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "unsigned": lambda: torch.zeros(3, dtype=torch.uint16),
}


@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.parametrize("kind", RARE)
@pytest.mark.parametrize("container", CONTAINERS)
def test_tensors_of_rare_kinds_are_refused_by_name_in_the_state_dict_and_passed_over_outside(
    tmp_path: Path, container: str, kind: str
) -> None:
    with pytest.raises(ModelUnsupportedError, match=r"tensor 'odd' of the weights 'm\.pth'"):
        read_checkpoint(save({"w": BASE, "odd": RARE[kind]()}, tmp_path / "m.pth", container), "m.pth")
    beside = save({"model": {"w": BASE}, "opt": RARE[kind]()}, tmp_path / "m.pth", container)
    assert bits(BASE) == read_bits(beside)["w"]


def test_a_file_that_is_gone_or_a_folder_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.pth", tmp_path):
        with pytest.raises(ModelPackageError, match="cannot be read"):
            read_checkpoint(path, "m.pth")
    path = save({"w": BASE}, tmp_path / "m.pth")
    found = read_checkpoint(path, "m.pth")["w"]
    path.write_bytes(path.read_bytes()[: found.offset + 20])
    with pytest.raises(ModelPackageError, match="'w' cannot be read: the file was cut off"):
        found.numpy()
    path.unlink()
    with pytest.raises(ModelPackageError, match="'w' cannot be read: No such file"):
        found.numpy()


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path: Path, container: str) -> None:
    content = save({"model": network().state_dict()}, tmp_path / "m.pth", container).read_bytes()
    for length in [*range(1, 40), *range(40, len(content), max(len(content) // 150, 1)), len(content) - 1]:
        with pytest.raises(ModelPackageError):
            read_checkpoint(write(tmp_path / "cut.pth", content[:length]), "m.pth")


# -- Evil files --------------------------------------------------------------------------------------------------------

Evil = tuple[list[EvilFile], dict[str, Any], Canary, bool]
MAX_GROWTH = 50 * 2**20
MAX_SECONDS = 10
CAP = 1536 * 2**20


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Evil:
    """All evil files, what became of each in one capped process, the canary, and whether somebody called."""
    folder = tmp_path_factory.mktemp("evil")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        canary = Canary(tmp_path_factory.mktemp("canary") / "touched", server.getsockname()[1])
        files = corpus(canary)
        for index, file in enumerate(files):
            write(folder / f"{index:03}.pth", file.content)
        output = run_python(evil_pickles.__file__, str(folder), str(CAP))
        try:
            server.accept()[0].close()
            was_called = True
        except BlockingIOError:
            was_called = False
    return files, json.loads(output), canary, was_called


@linux_only
@pytest.mark.slow
def test_each_evil_file_is_refused_or_read_without_its_evil(
    evil: Evil,
) -> None:
    files, results, _, _ = evil
    outcomes = [results["files"][f"{index:03}.pth"] for index in range(len(files))]
    wrong = [
        (file.name, file.expected, outcome["outcome"], outcome["message"][:200])
        for file, outcome in zip(files, outcomes)
        if file.expected != outcome["outcome"]
    ]
    assert [] == wrong
    assert len({file.name for file in files}) == len(files) >= 200
    assert {"read", "model-package", "untrusted-code", "model-unsupported"} == {file.expected for file in files}
    assert all(outcome["message"] or outcome["outcome"] == "read" for outcome in outcomes)


@linux_only
@pytest.mark.slow
def test_no_evil_file_runs_code(evil: Evil) -> None:
    _, results, canary, was_called = evil
    assert (None, False, False) == (results["marker"], canary.file.exists(), was_called)
    assert MARKER not in os.environ


@linux_only
@pytest.mark.slow
def test_no_evil_file_costs_much_memory_or_time(evil: Evil) -> None:
    files, results, _, _ = evil
    outcomes = [results["files"][f"{index:03}.pth"] for index in range(len(files))]
    costly = [
        (file.name, outcome["growth"], outcome["seconds"])
        for file, outcome in zip(files, outcomes)
        if outcome["growth"] > MAX_GROWTH or outcome["seconds"] > MAX_SECONDS
    ]
    assert [] == costly


@linux_only
@pytest.mark.parametrize("name", ["os.system", "exec", "getattr chain", "INST", "subprocess", "open to write"])
def test_pythons_own_machine_would_run_them(tmp_path: Path, name: str) -> None:
    """The canaries are alive: read as pickles usually are, the same bytes do what they want."""
    canary = Canary(tmp_path / "touched")
    content = evil_pickles.PROTO + payloads(canary)[name] + b"."
    write(tmp_path / "evil.pkl", content)
    run_python("-c", "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))", str(tmp_path / "evil.pkl"))
    assert canary.file.exists()


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.parametrize("container", CONTAINERS)
def test_flipped_bytes_never_cause_anything_but_a_refusal(tmp_path: Path, container: str, data: st.DataObject) -> None:
    content = bytearray(
        save({"model": {"w": BASE, "v": BASE.view(6, 10).t()}}, tmp_path / "m.pth", container).read_bytes()
    )
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        for entry in read_checkpoint(write(tmp_path / "n.pth", bytes(content)), "m.pth").values():
            assert entry.shape == entry.numpy().shape
    except InferenceError as error:
        assert error.message  # both outcomes are right


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
@pytest.mark.parametrize("wrap", [zipped, legacy, lambda data: evil_pickles.PROTO + data])
def test_any_pickle_is_read_or_refused(tmp_path: Path, wrap: Callable[[bytes], bytes], data: bytes) -> None:
    with pytest.raises(InferenceError):
        read_checkpoint(write(tmp_path / "m.pth", wrap(data)), "m.pth")


def test_tensors_may_not_take_more_than_a_few_times_the_file(tmp_path: Path) -> None:
    n = checkpoint.EXPANSION[1] // 4

    def expanded(count: int) -> Path:
        return write(tmp_path / "m.pth", zipped(state(x=tensor(size=numbers(count), stride=numbers(0)))))

    assert (n - 4,) == read_checkpoint(expanded(n - 4), "m.pth")["x"].shape
    with pytest.raises(ModelPackageError, match="far more memory than the file"):
        read_checkpoint(expanded(n), "m.pth")


def test_a_storage_may_have_a_rest_that_makes_no_number(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pth", zipped(state(), storages={"0": GOOD + b"\x00"}))
    assert GOOD == read_bits(path)["w"][2]
    with pytest.raises(ModelPackageError, match="should hold 4 numbers, and has 20 bytes"):
        read_checkpoint(write(path, zipped(state(), storages={"0": GOOD + struct.pack("<f", 1)})), "m.pth")
