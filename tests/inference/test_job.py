from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kestrel.inference.errors import InferenceError, JobError
from kestrel.inference.job import DetectionJob, RasterItem, job_from_json, parse_parallel_factor

LEAST: dict[str, Any] = {"job_id": "a", "rasters": (RasterItem("gdal", "/r.tif"),), "model": "/m.dlpk"}

WIRE = {**LEAST, "rasters": [{"kind": "gdal", "source": "/r.tif"}]}

numbers = st.floats(-1e6, 1e6)
rasters = st.builds(
    RasterItem, st.sampled_from(["gdal", "image_service", "picture"]), st.text(), st.text(),
    st.dictionaries(st.text(), st.booleans() | numbers | st.text()), st.text(),
)  # fmt: skip


@given(
    st.builds(
        DetectionJob,
        job_id=st.text(), rasters=st.lists(rasters, min_size=1, max_size=3).map(tuple),
        model=st.text(), model_sha256=st.text(),
        arguments=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | numbers | st.text()),
        objects_of_interest=st.lists(st.text()).map(tuple),
        extent=st.none() | st.tuples(numbers, numbers, st.floats(1e7, 1e8), st.floats(1e7, 1e8)),
        cell_size=st.none() | st.floats(1e-9, 1e9),
        snap=st.none() | st.tuples(numbers, numbers), resampling=st.sampled_from(["auto", "nearest", "cubic"]),
        bands=st.lists(st.integers(0, 20) | st.text()).map(tuple), processing_mode=st.sampled_from(["mosaic", "items"]),
        max_tiles=st.none() | st.integers(1),
        mask_wkb=st.none() | st.text("0123456789ABCDEF"),
        run_nms=st.booleans(), max_overlap_ratio=st.floats(0, 1),
        processor=st.sampled_from(["auto", "cpu", "gpu"]), gpu_id=st.none() | st.integers(0, 8),
        parallel_processing_factor=st.sampled_from(["", "4", "75%", "0"]),
    )
)  # fmt: skip
def test_a_job_comes_back_from_json_as_it_was(job: DetectionJob) -> None:
    assert job == job_from_json(job.to_json())


@pytest.mark.parametrize(
    "members",
    [
        {"extent": (0, 0, 0, 1)},
        {"extent": (5, 0, 1, 1)},
        {"extent": (0, 3, 1, 1)},
        {"extent": (float("nan"), 0, 1, 1)},
        {"extent": (float("-inf"), 0, 1, 1)},
        {"extent": (0, 0, 1, float("inf"))},
        {"cell_size": 0},
        {"cell_size": -0.5},
        {"cell_size": float("nan")},
        {"cell_size": float("inf")},
        {"max_overlap_ratio": 1.01},
        {"max_overlap_ratio": float("nan")},
        {"processor": "tpu"},
        {"resampling": "smooth"},
        {"processing_mode": "both"},
        {"rasters": ()},
        {"parallel_processing_factor": "many"},
        {"parallel_processing_factor": "-1"},
        {"parallel_processing_factor": "1.5"},
        {"parallel_processing_factor": "nan%"},
    ],
)
def test_a_value_outside_its_range_is_refused_when_the_job_is_made(members: dict[str, Any]) -> None:
    with pytest.raises(JobError):
        DetectionJob(**{**LEAST, **members})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "null",
        "{}",
        json.dumps(WIRE),
        json.dumps({"schema": 2, "job_id": "a"}),
        json.dumps({**WIRE, "schema": "1"}),
        json.dumps({**WIRE, "schema": 2, "nonsense": 1}),
        json.dumps({**WIRE, "schema": 2, "rasters": []}),
        json.dumps({**WIRE, "schema": 2, "rasters": ["/r.tif"]}),
        json.dumps({**WIRE, "schema": 2, "rasters": [{"kind": "tape", "source": "/r.tif"}]}),
        json.dumps({**WIRE, "schema": 2, "extent": [1, 2]}),
        json.dumps({**WIRE, "schema": 2, "extent": 5}),
        json.dumps({**WIRE, "schema": 2, "extent": ["a", "b", "c", "d"]}),
        json.dumps({**WIRE, "schema": 2, "objects_of_interest": 3}),
        json.dumps({**WIRE, "schema": 2, "cell_size": "wide"}),
        json.dumps({**WIRE, "schema": 2, "max_overlap_ratio": None}),
        json.dumps({**WIRE, "schema": 2, "parallel_processing_factor": 5}),
    ],
)
def test_what_is_no_job_is_refused_as_one(text: str) -> None:
    with pytest.raises(JobError):
        job_from_json(text)


def test_a_job_of_a_newer_version_says_that_the_plugin_is_old() -> None:
    with pytest.raises(JobError, match=r"newer version.*Update the plugin"):
        job_from_json(json.dumps({**WIRE, "schema": 3, "quantum": True}))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
                        st.sampled_from(["schema", "job_id", "rasters", "model", "extent", "cell_size", "gpu_id"]),
                        inner), max_leaves=12))  # fmt: skip
def test_any_json_is_read_or_refused(data: Any) -> None:
    try:
        job_from_json(json.dumps(data))
    except InferenceError as error:
        assert error.message  # both outcomes are right


@pytest.mark.parametrize(
    ("text", "n_cores", "expected"),
    [("", 6, 6), (" ", 6, 6), ("4", 2, 4), ("0", 8, 1), ("0%", 8, 1), ("100%", 8, 8), ("75%", 8, 6), ("10%", 4, 1),
     ("200%", 4, 8), (" 50 % ", 4, 2), ("100000", 2, 8), ("1e3%", 4, 16)],
)  # fmt: skip
def test_a_parallel_factor_is_a_count_or_a_share_of_the_cores(text: str, n_cores: int, expected: int) -> None:
    assert expected == parse_parallel_factor(text, n_cores)
