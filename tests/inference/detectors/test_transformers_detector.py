from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kestrel.inference.detectors import load_detector, transformers_detector
from kestrel.inference.detectors.protocol import Detector, DetectorSettings
from kestrel.inference.detectors.transformers_text import parse_prompt
from kestrel.inference.errors import (
    BackendMissingError,
    InferenceError,
    JobError,
    ModelIncompatibleError,
    ModelPackageError,
    UntrustedCodeError,
)
from kestrel.inference.models.arguments import resolve_arguments
from kestrel.inference.models.package import open_package
from kestrel.inference.object_file import CLASS_TEXT
from kestrel.tests.fixtures.huggingface import CONFIGS, NAMES, PHRASES, PREPARATION, SIDE, make_network, write_folder
from kestrel.tests.fixtures.packages import write_zip
from kestrel.tests.fixtures.rasters import noise, write_raster
from kestrel.tests.fixtures.runs import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="the optional extra is not installed"),
]

PROMPT = {"text_prompt": "tree. Car, old building"}
OPEN = ("owlvit", "owlv2", "grounding-dino")
PROCESSORS = {
    "detr": "Detr", "table-transformer": "Detr", "conditional_detr": "ConditionalDetr",
    "deformable_detr": "DeformableDetr", "yolos": "Yolos", "rt_detr": "RTDetr", "rt_detr_v2": "RTDetr",
    "d_fine": "RTDetr", "rf_detr": "RfDetr", "owlvit": "OwlViT", "owlv2": "Owlv2", "grounding-dino": "GroundingDino",
}  # fmt: skip
N_QUERIES = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind."""
    top = tmp_path_factory.mktemp("models")
    return {name: write_folder(top / name, name) for name in CONFIGS}


def load(work: Path, reference: Path | str, **arguments: Any) -> Detector:
    package = open_package(str(reference))
    target = work / f"work{len(list(work.iterdir()))}"
    target.mkdir()
    values = resolve_arguments(package.definition, {"threshold": 0.01, "nms_overlap": 1, **arguments}).values
    return load_detector(package, values, DetectorSettings("cpu", 1), target)


def images() -> np.ndarray:
    return np.stack([noise(3, SIDE, SIDE, seed) for seed in (1, 2)])


def own_results(folder: Path, name: str, batch: np.ndarray) -> list[dict[str, Any]]:
    """What the library itself finds: its own loading, its own preparation, its own post-processing."""
    import transformers

    maker = transformers.AutoModelForZeroShotObjectDetection if name in OPEN else (
        transformers.AutoModelForObjectDetection)  # fmt: skip
    network = maker.from_pretrained(folder, local_files_only=True).eval()
    processor = getattr(transformers, f"{PROCESSORS[name]}ImageProcessor")(**PREPARATION)
    inputs = processor(images=[np.moveaxis(image, 0, -1) for image in batch], return_tensors="pt")
    inputs = {"pixel_values": inputs["pixel_values"], **(texts(folder, name, len(batch)) if name in OPEN else {})}
    with torch.inference_mode():
        outputs = network(**inputs)
    more = {"top_k": N_QUERIES} if name in ("conditional_detr", "deformable_detr") else {}
    found = processor.post_process_object_detection(outputs, 0.01, [(SIDE, SIDE)] * len(batch), **more)
    return [{key: value.numpy() for key, value in item.items()} for item in found]


def texts(folder: Path, name: str, n: int) -> dict[str, torch.Tensor]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if name == "grounding-dino":
        return dict(tokenizer(["tree. car. old building."] * n, return_tensors="pt"))
    read = tokenizer(list(PHRASES) * n, padding="max_length", max_length=16, return_tensors="pt")
    return {key: read[key] for key in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("name", CONFIGS)
def test_boxes_scores_and_labels_are_those_of_the_librarys_own_post_processing(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    batch = images()
    detector = load(tmp_path, folders[name], **(PROMPT if name in OPEN else {}))
    for expected, found in zip(own_results(folders[name], name, batch), detector.predict(batch), strict=True):
        assert len(found) == len(expected["scores"]) > 3
        mine, theirs = np.argsort(-found.scores, kind="stable"), np.argsort(-expected["scores"], kind="stable")
        assert np.allclose(found.scores[mine], expected["scores"][theirs], rtol=0, atol=1e-3)
        # Scores that are nearly the same may change places: each box is looked for, with its label.
        apart = np.abs(found.boxes[:, None] - expected["boxes"][None]).max(axis=2)
        assert apart.min(axis=1).max() < 0.5
        if name not in ("grounding-dino", *OPEN):
            same = found.labels[:, None] == expected["labels"][None]
            assert np.where(same, apart, np.inf).min(axis=1).max() < 0.5


@pytest.mark.parametrize("name", ["owlvit", "owlv2"])
def test_objects_are_called_by_the_phrase_that_found_them(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    batch = images()
    detector = load(tmp_path, folders[name], **PROMPT)
    for expected, found in zip(own_results(folders[name], name, batch), detector.predict(batch), strict=True):
        assert found.attributes is not None
        called = np.array([item[CLASS_TEXT].lower() for item in found.attributes])
        theirs = np.array([PHRASES[label] for label in expected["labels"]])
        apart = np.abs(found.boxes[:, None] - expected["boxes"][None]).max(axis=2)
        apart += np.abs(found.scores[:, None] - expected["scores"][None])
        assert np.where(called[:, None] == theirs[None], apart, np.inf).min(axis=1).max() < 0.5
        assert sorted(called) == sorted(theirs)
        assert len(set(called)) > 1


def test_a_token_stands_for_the_phrase_that_it_is_in(folders: dict[str, Path], tmp_path: Path) -> None:
    detector: Any = load(tmp_path, folders["grounding-dino"], text_prompt="old tree; building.car")
    assert detector._prompt.phrase_of_token.tolist() == [-1, 0, 0, -1, 1, -1, 2, -1, -1]
    (found, _) = detector.predict(images())
    assert {item[CLASS_TEXT] for item in found.attributes} <= {"old tree", "building", "car"}


def test_a_class_of_the_definition_goes_before_the_words_of_the_prompt(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    content = json.loads(open_package(str(folders["owlv2"])).definition_bytes)
    content["classes"] = [{"value": 7, "name": "Building"}, {"value": 9, "name": "TREE"}]
    path = folders["owlv2"] / "named.json"
    path.write_text(json.dumps(content), "utf-8")
    (found, _) = load(tmp_path, path, **PROMPT).predict(images())
    labels = {item[CLASS_TEXT]: label for item, label in zip(found.attributes, found.labels.tolist())}
    assert labels["tree"] == 1
    path.unlink()


def test_an_image_alone_gives_what_it_gives_among_others(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("rt_detr", "owlv2"):
        detector = load(tmp_path, folders[name], **(PROMPT if name in OPEN else {}))
        batch = images()
        for one, among in zip((detector.predict(image[None])[0] for image in batch), detector.predict(batch)):
            assert np.allclose(one.boxes, among.boxes, atol=1e-3)


def test_weights_in_a_checkpoint_are_read_as_data_and_shards_are_joined(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    (expected, _) = load(tmp_path, folders["rt_detr"]).predict(images())
    state = make_network("rt_detr").state_dict()
    from kestrel.inference.detectors.weights import read_state

    state = dict(read_state(folders["rt_detr"] / "model.safetensors", "model.safetensors"))
    for form in ("bin", "shards"):
        folder = tmp_path / form
        folder.mkdir()
        for name in ("config.json", "preprocessor_config.json"):
            (folder / name).write_bytes((folders["rt_detr"] / name).read_bytes())
        if form == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            names = sorted(state)
            places = {name: f"model-{number % 2 + 1}.safetensors" for number, name in enumerate(names)}
            from safetensors.torch import save_file

            for place in set(places.values()):
                save_file({name: state[name] for name in names if places[name] == place}, str(folder / place))
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), "utf-8")
        (found, _) = load(tmp_path, folder).predict(images())
        assert found.boxes.tolist() == expected.boxes.tolist()


def test_a_package_of_the_folder_finds_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["rt_detr"]
    data = open_package(str(folder)).definition_bytes
    members = [("rt.kestrel.json", data), *((p.name, p.read_bytes()) for p in folder.iterdir() if p.is_file())]
    path = write_zip(tmp_path / "p.dlpk", members)
    for one, two in zip(load(tmp_path, folder).predict(images()), load(tmp_path, path).predict(images())):
        assert one.boxes.tolist() == two.boxes.tolist()


# -- Whole runs --------------------------------------------------------------------------------------------------------


def test_a_whole_run_with_a_folder_finds_objects_of_its_classes(
    folders: dict[str, Path], tmp_path: Path, repository: Path
) -> None:
    raster = repository / "resources" / "demo" / "OSBS_029.tif"
    result = run(tmp_path / "job", raster, folders["rt_detr"], arguments={"threshold": 0.3})
    assert (SIDE, False) == (result.summary["tile_size"], result.summary["is_exact"])
    assert set(result.labels) <= set(NAMES)
    assert len(result) == result.summary["objects"] > 0


def test_a_whole_run_with_a_text_gives_objects_that_carry_its_words(
    folders: dict[str, Path], tmp_path: Path, repository: Path
) -> None:
    raster = repository / "resources" / "demo" / "OSBS_029.tif"
    arguments = {"threshold": 0.1, "nms_overlap": 0.9, **PROMPT}
    result = run(tmp_path / "job", raster, folders["owlv2"] / "config.json", arguments=arguments)
    told = {item[CLASS_TEXT] for part in result.objects for item in part.attributes or []}
    assert len(result) > 0
    assert set() < told <= {"tree", "Car", "old building"}
    assert {part.foreign_class(0, "object", 1) for part in result.objects if len(part)} <= told


def test_a_run_without_a_text_ends_before_anything_is_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "r.tif", noise(3, 64, 64))
    with pytest.raises(JobError, match=r"no text was given.*text_prompt") as caught:
        run(tmp_path / "job", raster, folders["owlv2"], arguments={"text_prompt": " . ,"})
    assert caught.value.context["argument"] == "text_prompt"


# -- What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("tree. car. building", ("tree", "car", "building")), ("Tree, tree ,TREE", ("Tree",)),
        ("a red  roof;\nsolar panel.", ("a red roof", "solar panel")),
    ],
)  # fmt: skip
def test_a_text_is_cut_into_phrases(text: str, phrases: tuple[str, ...]) -> None:
    assert parse_prompt(text) == phrases


@pytest.mark.parametrize("name", OPEN)
def test_a_phrase_that_the_network_cannot_read_whole_is_refused(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    with pytest.raises(JobError, match="tokens, and the model reads"):
        load(tmp_path, folders[name], text_prompt=" ".join(["tree"] * 70))


def test_the_missing_library_is_told_with_the_way_to_install_it(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_detector, "find_spec", lambda _: None)
    with pytest.raises(BackendMissingError, match="Install Transformers"):
        load(tmp_path, folders["rt_detr"])


def test_nothing_is_fetched(folders: dict[str, Path], tmp_path: Path) -> None:
    load(tmp_path, folders["yolos"])
    assert (os.environ["HF_HUB_OFFLINE"], os.environ["TRANSFORMERS_OFFLINE"]) == ("1", "1")


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def changed(folder: Path, target: Path, **members: Any) -> Path:
    copied(folder, target)
    config = json.loads((target / "config.json").read_text("utf-8"))
    (target / "config.json").write_text(json.dumps({**config, **members}), "utf-8")
    return target


def test_a_program_that_comes_in_after_the_definition_was_made_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    data = open_package(str(folders["rt_detr"])).definition_bytes
    folder = changed(folders["rt_detr"], tmp_path / "m", auto_map={"AutoModel": "evil.Net"})
    (folder / "m.kestrel.json").write_bytes(data)
    (folder / "evil.py").write_text("raise SystemExit('it ran')", "utf-8")
    with pytest.raises(InferenceError, match="auto_map"):
        load(tmp_path, folder)


def test_weights_of_another_network_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["rt_detr"], tmp_path / "m")
    (folder / "model.safetensors").write_bytes((folders["yolos"] / "model.safetensors").read_bytes())
    with pytest.raises(ModelIncompatibleError, match="do not fit the rt_detr"):
        load(tmp_path, folder)


def test_a_pickled_program_in_the_place_of_weights_does_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["rt_detr"], tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save(torch.nn.Linear(2, 2), folder / "pytorch_model.bin")
    with pytest.raises(UntrustedCodeError, match="whole Python object"):
        load(tmp_path, folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_link_to_another_place_is_not_followed(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = copied(folders["rt_detr"], tmp_path / "m")
    (folder / name).rename(tmp_path / "private")
    (folder / name).symlink_to(tmp_path / "private")
    with pytest.raises(ModelPackageError, match="is a link to another place"):
        load(tmp_path, folder)


def test_links_inside_the_cache_of_hugging_face_are_followed(folders: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "models--owner--tiny"
    snapshot, blobs = model / "snapshots" / "abc", model / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folders["rt_detr"].iterdir():
        (blobs / f"hash-of-{path.name}").write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"hash-of-{path.name}")
    assert open_package(str(snapshot)).definition.name == "owner/tiny"
    assert len(load(tmp_path, snapshot).predict(images())) == 2


def test_a_config_that_the_library_cannot_build_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = changed(folders["rt_detr"], tmp_path / "m", d_model="many")
    with pytest.raises(InferenceError, match="cannot build the rt_detr"):
        load(tmp_path, folder)


def test_parts_of_the_weights_that_the_definition_does_not_name_are_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copied(folders["rt_detr"], tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"weight_map": {"a": "part.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    content = json.loads(open_package(str(folder)).definition_bytes)
    assert "part.safetensors" in content["detector"]["files"]
    del content["detector"]["files"]
    (folder / "m.kestrel.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(ModelIncompatibleError, match=r"'part\.safetensors' too"):
        load(tmp_path, folder)


def test_a_backbone_of_a_library_that_is_not_there_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    if importlib.util.find_spec("timm") is not None:
        pytest.skip("timm is there")
    folder = changed(
        folders["detr"],
        tmp_path / "m",
        backbone="resnet50",
        backbone_config=None,
        use_timm_backbone=True,
        dilation=False,
    )
    with pytest.raises(BackendMissingError, match="needs the library timm"):
        load(tmp_path, folder)


def test_a_tokenizer_reads_no_file_from_elsewhere(tmp_path: Path) -> None:
    from kestrel.inference.detectors.transformers_copy import make_safe

    words = {
        "tokenizer_class": "BertTokenizer",
        "vocab": "/elsewhere/vocab.txt",
        "tokenizer_file": "/x",
        "pad_token": "p",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(words))
    config = {"model_type": "owlv2", "attn_implementation": "org/kernel", "text_config": {"quantization_config": {}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    make_safe(tmp_path)
    assert {"tokenizer_class": "BertTokenizer", "pad_token": "p"} == json.loads(
        (tmp_path / "tokenizer_config.json").read_text()
    )
    assert {"model_type": "owlv2", "text_config": {}} == json.loads((tmp_path / "config.json").read_text())
