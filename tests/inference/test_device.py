from __future__ import annotations

import pytest

from kestrel.inference.device import choose_device
from kestrel.inference.errors import DeviceUnavailableError

# The locked ONNX Runtime is the build for CPUs, so this holds on every machine.


@pytest.mark.parametrize(("processor", "gpu_id"), [("auto", None), ("cpu", None), ("cpu", 3)])
def test_without_a_usable_gpu_the_cpu_runs(processor: str, gpu_id: int | None) -> None:
    assert "cpu" == choose_device(processor, gpu_id, "onnx")


@pytest.mark.parametrize(("processor", "gpu_id"), [("gpu", None), ("gpu", 0), ("auto", 3)])
def test_a_gpu_that_was_asked_for_and_is_not_there_is_an_error(processor: str, gpu_id: int | None) -> None:
    with pytest.raises(DeviceUnavailableError, match="inference environment") as caught:
        choose_device(processor, gpu_id, "onnx")
    assert caught.value.hint
