"""The training code: geometry of the augmentation, label assignment, measures, and the export's round trip."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

import augment
import evaluate
import export
import loss
import train
from dataset import Plot, read_boxes
from network import ALIGNMENT, STRIDE, CrownNet, ExportHead, cell_centres, corner_boxes


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Keep the tests light on shared machines."""
    torch.set_num_threads(1)


@pytest.fixture
def plot() -> Plot:
    """A dark plot of 200 px with one bright crown of 40 x 20 px, and a corner to ignore."""
    image = np.full((3, 200, 200), 40, dtype=np.uint8)
    image[:, 90:110, 80:120] = 220
    ignore = np.zeros((200, 200), dtype=bool)
    ignore[:30, :30] = True
    return Plot("TEST_001", image, np.array([[80, 90, 120, 110]], dtype=np.float32), ignore)


def test_boxes_are_read_whatever_the_class_is_called(tmp_path: Path) -> None:
    """Class names in the data hold stray characters; coordinates are taken as pixel edges."""
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>400</xmax><ymax>9</ymax></bndbox>"
    path = tmp_path / "plot.xml"
    path.write_text(f"<annotation><object><name>Tree\\</name>{box}</object><object><name/>{box}</object></annotation>")
    assert read_boxes(path).tolist() == [[1, 2, 400, 9]] * 2


def test_quarter_turns_keep_boxes_exact_and_other_turns_keep_circles() -> None:
    """A box turned by 90 degrees swaps its sides; a square box stays the size of its inscribed circle."""
    quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
    turned = augment.rotate_boxes(np.array([[10, 20, 50, 40]], dtype=np.float32), quarter, np.zeros(2))
    assert turned[0] == pytest.approx([-40, 10, -20, 50])
    angle = 0.6
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    circle = augment.rotate_boxes(np.array([[0, 0, 30, 30]], dtype=np.float32), matrix, np.zeros(2))
    assert circle[0, 2:] - circle[0, :2] == pytest.approx([30, 30], abs=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_warped_box_stays_on_its_crown(plot: Plot, seed: int) -> None:
    """After a warp the box's middle is on the bright crown and the area outside the ellipse is dark."""
    rng = np.random.default_rng(seed)
    matrix = augment.random_linear(rng, rng.uniform(0.7, 1.5))
    scene = augment.warp_plot(plot, matrix, rng.uniform(85, 115, 2), 160, 144)
    assert scene.image.shape == (3, 144, 160)
    assert scene.ignore.shape == (144, 160)
    xmin, ymin, xmax, ymax = scene.boxes[0]
    x, y = int((xmin + xmax) / 2), int((ymin + ymax) / 2)
    assert scene.image[0, y, x] > 0.8
    bright = (scene.image[0] > 0.5).nonzero().float() + 0.5
    middle = bright.mean(0)
    assert middle.flip(0).numpy() == pytest.approx([(xmin + xmax) / 2, (ymin + ymax) / 2], abs=1.0)


def test_places_outside_the_plot_are_ignored(plot: Plot) -> None:
    """Mirrored filling must not teach background."""
    scene = augment.warp_plot(plot, np.eye(2), np.array([0.0, 100.0]), 100, 100)
    assert scene.ignore[:, :50].all()
    assert not scene.ignore[:, 50:].any()


def test_cut_boxes_are_kept_ignored_or_dropped_by_what_is_left() -> None:
    """Half a crown is learned, a tenth is ignored, and one outside is background."""
    boxes = np.array([[-20, 0, 20, 40], [-36, 0, 4, 40], [-60, 0, -10, 40]], dtype=np.float32)
    kept, ignored = augment.clip_boxes(boxes, 100, 100)
    assert kept.tolist() == [[0, 0, 20, 40]]
    assert ignored.tolist() == [[0, 0, 4, 40]]


def test_scenes_repeat_with_the_seed_and_hold_valid_boxes(plot: Plot) -> None:
    """Same seed, same scene; boxes lie inside and have area."""
    maker = augment.SceneMaker([plot], 128)
    for seed in range(8):
        first, again = (maker.make(np.random.default_rng(seed)) for _ in range(2))
        assert torch.equal(first.image, again.image)
        assert np.array_equal(first.boxes, again.boxes)
        assert 0 <= float(first.image.min()) <= float(first.image.max()) <= 1
        assert (first.boxes >= 0).all()
        assert (first.boxes <= 128).all()
        assert ((first.boxes[:, 2:] - first.boxes[:, :2]) > 0).all()


def test_pasted_crowns_do_not_cover_trees(plot: Plot) -> None:
    """Copied crowns are put only where there is room."""
    scene = augment.warp_plot(plot, np.eye(2), np.array([100.0, 100.0]), 200, 200)
    augment.paste_crowns(scene, augment.collect_crowns([plot]), np.random.default_rng(3), 20)
    assert len(scene.boxes) > 2
    for index, box in enumerate(scene.boxes):
        assert augment.overlap_fraction(box, np.delete(scene.boxes, index, 0)).max() < 0.16


def test_assignment_gives_every_crown_cells_and_spares_ignored_places() -> None:
    """Small crowns get a cell too, the best cell's target is its overlap, and ignored cells have no weight."""
    centres = cell_centres(16, 16)
    boxes = torch.tensor([[8.0, 8.0, 56.0, 56.0], [97.0, 97.0, 103.0, 103.0]])
    predicted = torch.cat((centres - 20, centres + 20), 1)
    ignore = torch.zeros(256, dtype=torch.bool)
    ignore[-16:] = True
    target = loss.assign(torch.full((256,), 0.1), predicted, centres, boxes, ignore)
    owners = {tuple(box) for box in target.boxes[target.scores > 0].tolist()}
    assert owners == {tuple(box) for box in boxes.tolist()}
    assert int((target.scores > 0).sum()) <= 2 * loss.TOP_CELLS
    assert float(target.scores.max()) == pytest.approx(float(loss.pairwise_iou(boxes, predicted).max()), abs=1e-5)
    assert target.weights[-16:].sum() == 0
    assert target.weights[:-16].min() == 1


def test_loss_is_small_for_the_truth_and_falls_with_overlap() -> None:
    """GIoU loss is 0 for equal boxes and above 1 for disjoint ones; an empty image has a finite loss."""
    box = torch.tensor([[10.0, 10.0, 50.0, 40.0]])
    assert float(loss.giou_loss(box, box)) == pytest.approx(0, abs=1e-6)
    assert float(loss.giou_loss(box + 100, box)) > 1
    logits, distances = torch.full((1, 1, 8, 8), -4.0), torch.full((1, 4, 8, 8), 16.0)
    total, _ = loss.detection_loss(logits, distances, [torch.zeros(0, 4)], torch.zeros(1, 8, 8, dtype=torch.bool))
    assert 0 < float(total) < 5


def test_corner_boxes_follow_the_cells() -> None:
    """The flattened order is row by row, with the centre of the cell in the middle of equal distances."""
    boxes = corner_boxes(torch.full((1, 4, 2, 3), 6.0))
    assert boxes[0, 4].tolist() == [1.5 * STRIDE - 6, 1.5 * STRIDE - 6, 1.5 * STRIDE + 6, 1.5 * STRIDE + 6]


def test_matching_is_one_to_one_and_precision_is_monotonic() -> None:
    """A second detection of the same crown is wrong; average precision follows the ranking."""
    truth = np.array([[0, 0, 10, 10], [50, 50, 60, 60]], dtype=np.float32)
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]], dtype=np.float32)
    assert evaluate.match(boxes, truth, 0.4).tolist() == [0, -1, 1]
    hits = np.array([True, False, True])
    assert evaluate.average_precision(np.array([0.9, 0.8, 0.7]), hits, 2) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_calibration_recovers_the_share_of_right_detections() -> None:
    """Where six of ten detections of one score and two of ten of another are right, the scores become 0.6 and 0.2."""
    truth = np.array([[20 * index, 0, 20 * index + 10, 10] for index in range(20)], dtype=np.float32)
    wrong = np.isin(np.arange(20), [0, 1, 2, 3, *range(12, 20)])
    boxes = truth + np.where(wrong, 100, 0)[:, None].astype(np.float32) * np.array([0, 1, 0, 1], dtype=np.float32)
    scores = np.repeat(np.array([0.3, 0.1], dtype=np.float32), 10)
    plot = Plot("TEST_001", np.zeros((3, 200, 400), dtype=np.uint8), truth, np.zeros((200, 400), dtype=bool))
    scale, offset = evaluate.calibrate([evaluate.Detections(boxes, scores)], [plot], 0.5)
    assert evaluate.apply_calibration(0.3, scale, offset) == pytest.approx(0.6, abs=0.01)
    assert evaluate.apply_calibration(0.1, scale, offset) == pytest.approx(0.2, abs=0.01)


def test_settings_lie_in_the_middle_of_the_flat_top() -> None:
    """Right detections score 0.5 and wrong ones 0.2: every threshold between is perfect, and the median is taken."""
    truth = np.array([[20 * index, 0, 20 * index + 10, 10] for index in range(10)], dtype=np.float32)
    wrong = truth + np.array([0, 50, 0, 50], dtype=np.float32)
    scores = np.repeat(np.array([0.5, 0.2], dtype=np.float32), 10)
    plot = Plot("TEST_001", np.zeros((3, 100, 200), dtype=np.uint8), truth, np.zeros((100, 200), dtype=bool))
    threshold, overlap = evaluate.best_settings([evaluate.Detections(np.concatenate((truth, wrong)), scores)], [plot])
    assert 0.3 <= threshold <= 0.4
    assert overlap == pytest.approx(0.3)


def test_a_few_steps_lower_the_loss(plot: Plot) -> None:
    """The network learns one batch."""
    torch.manual_seed(0)
    network = CrownNet((8, 8, 16, 16, 16)).train()
    optimizer = train.make_optimizer(network, 5e-3)
    scenes = [augment.warp_plot(plot, np.eye(2) * factor, np.array([100.0, 100.0]), 128, 128) for factor in (1, 1.3)]
    images = torch.stack([(scene.image * 255).byte() for scene in scenes])
    batch = images, [torch.from_numpy(scene.boxes) for scene in scenes], torch.zeros(2, 16, 16, dtype=torch.bool)
    losses = [train.train_step(network, optimizer, batch, bfloat16=False) for _ in range(25)]
    assert losses[-1]["score"] + losses[-1]["box"] < 0.7 * (losses[0]["score"] + losses[0]["box"])


@pytest.mark.slow
def test_export_round_trip(tmp_path: Path) -> None:
    """ONNX Runtime equals PyTorch at another size and batch, the reach is bounded, and the package repeats."""
    torch.manual_seed(1)
    head = ExportHead(CrownNet((8, 8, 16, 16, 16)), 1.2, 0.8).eval()
    images = np.random.default_rng(2).integers(0, 256, (3, 3, 5 * ALIGNMENT, 7 * ALIGNMENT), dtype=np.uint8)
    with torch.no_grad():
        expected = head(torch.from_numpy(images)).numpy()
    path = tmp_path / "tree_crowns.onnx"
    export.export_onnx(head, path)
    result = export.onnx_detector(path)(images)
    assert result.shape == (3, 5, 10 * 14)
    assert np.abs(result - expected).max() < 1e-3
    assert export.measure_reach(path, 24 * ALIGNMENT) <= 128
    definition = json.dumps(export.model_definition(0.3, 0.3, 125, 0.5)).encode()
    for name in ("first.dlpk", "second.dlpk"):
        export.write_archive(tmp_path / name, {"tree_crowns.emd": definition, "tree_crowns.onnx": path.read_bytes()})
    assert (tmp_path / "first.dlpk").read_bytes() == (tmp_path / "second.dlpk").read_bytes()
    with zipfile.ZipFile(tmp_path / "first.dlpk") as archive:
        assert json.loads(archive.read("tree_crowns.emd"))["Kestrel"]["arguments"]["padding"] == 128
