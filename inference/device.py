"""Choose the processor that a network runs on."""

from __future__ import annotations

from .errors import DeviceUnavailableError


def choose_device(processor: str, gpu_id: int | None, kind: str) -> str:
    """Give the device for a job: "cpu", "cuda:N" or "mps".

    Args:
        processor: "cpu", "gpu", or "auto" for a GPU where there is a usable one.
        gpu_id: Number of the GPU; None: the one with most free memory.
        kind: The detector's kind; each library sees GPUs of its own.

    Raises:
        DeviceUnavailableError: a GPU was asked for, and there is none, or none of that number.
    """
    if processor == "cpu":
        return "cpu"
    devices = _DEVICES.get(kind, _torch_devices)()
    if gpu_id is not None and f"cuda:{gpu_id}" not in devices:
        raise DeviceUnavailableError(
            f"There is no GPU with the number {gpu_id} for {kind} models in this inference environment.",
            hint=f"Usable: {', '.join(devices) or 'the CPU only'}. Leave the GPU ID empty to let Kestrel choose.",
        )
    if devices:
        return f"cuda:{gpu_id}" if gpu_id is not None else devices[0]
    if processor == "gpu":
        raise DeviceUnavailableError(
            f"No GPU can be used for {kind} models in this inference environment.",
            hint="Choose processor CPU or Auto; Settings > Options > Kestrel shows what the environment sees.",
        )
    return "cpu"


def _torch_devices() -> list[str]:
    try:
        import torch  # here, so that an ONNX run never pays for it
    except ImportError:
        return []  # what needs torch says so when it is loaded
    if torch.cuda.is_available():
        numbers = range(torch.cuda.device_count())
        free = {number: torch.cuda.mem_get_info(number)[0] for number in numbers}
        return [f"cuda:{number}" for number in sorted(numbers, key=lambda n: (-free[n], n))]
    return ["mps"] if torch.backends.mps.is_available() else []


def _onnx_devices() -> list[str]:
    import onnxruntime

    return ["cuda:0"] if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else []


def _tensorflow_devices() -> list[str]:
    try:
        import tensorflow
    except ImportError:
        return []  # the detector says so when it is loaded
    return [f"cuda:{number}" for number in range(len(tensorflow.config.list_physical_devices("GPU")))]


_DEVICES = {"onnx": _onnx_devices, "tensorflow": _tensorflow_devices}
