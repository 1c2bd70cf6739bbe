"""Weights as tensors of torch: from safetensors, and from checkpoints (.pth) that are read without unpickling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import ModelPackageError
from ..models.checkpoint import CheckpointTensor, read_checkpoint

MAX_HEADER_BYTES = 16 * 2**20
"""Longest list of tensors that a file of safetensors may hold; a thousandfold of what networks need."""


def read_state(path: Path, name: str) -> Mapping[str, torch.Tensor]:
    """Read a state dict, by what the file holds and not by its name.

    Args:
        path: The file.
        name: How messages call it.

    Returns:
        Tensors on the CPU, by name.

    Raises:
        ModelPackageError: the file is damaged, or no state dict.
        UntrustedCodeError: it is a program.
    """
    with path.open("rb") as stream:
        start = stream.read(9)
    if name.lower().endswith(".safetensors") or start[8:] == b"{":
        return _read_safetensors(path, name, int.from_bytes(start[:8], "little"))
    return {key: _as_torch(tensor) for key, tensor in read_checkpoint(path, name).items()}


def _read_safetensors(path: Path, name: str, header_bytes: int) -> Mapping[str, torch.Tensor]:
    if header_bytes > MAX_HEADER_BYTES:
        raise ModelPackageError(f"The weights '{name}' are damaged: their list of tensors claims to be endless.")
    try:
        state: Mapping[str, torch.Tensor] = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ModelPackageError(f"The weights '{name}' are damaged: {error}.") from error
    return state


def _as_torch(tensor: CheckpointTensor) -> torch.Tensor:
    numbers = torch.from_numpy(tensor.numpy())
    return numbers.view(torch.bfloat16) if tensor.dtype == "bfloat16" else numbers
