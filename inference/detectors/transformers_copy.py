"""A model folder's private copy, made safe for the library: descriptions without words that lead out of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ModelError

_TOKENIZER = "tokenizer_config.json"
_CONFIG = "config.json"
_OF_TOKENIZERS = frozenset((
    "tokenizer_class", "model_max_length", "do_lower_case", "strip_accents", "tokenize_chinese_chars",
    "do_basic_tokenize", "never_split", "clean_up_tokenization_spaces", "padding_side", "truncation_side", "errors",
    "add_prefix_space", "added_tokens_decoder", "additional_special_tokens", "pad_token", "bos_token", "eos_token",
    "unk_token", "cls_token", "sep_token", "mask_token",
))  # fmt: skip
"""What a tokenizer may be told. Other members name files anywhere on the disk, which no hash covers, or programs."""
_NOT_OF_CONFIGS = frozenset(("attn_implementation", "_attn_implementation", "quantization_config", "auto_map"))
"""Members, at any depth, for which the library looks for kernels, quantizers or programs elsewhere."""


def make_safe(place: Path) -> None:
    """Rewrite the descriptions in a private copy of a model folder.

    Raises:
        ModelError: one is no JSON object.
    """
    for name, cleaned in ((_TOKENIZER, _tokenizer), (_CONFIG, _config)):
        path = place / name
        if path.is_file():
            content = cleaned(_read(path))
            path.unlink()
            path.write_text(json.dumps(content), "utf-8")


def _tokenizer(content: dict[str, Any]) -> Any:
    return {name: value for name, value in content.items() if name in _OF_TOKENIZERS}


def _config(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _config(value) for name, value in content.items() if name not in _NOT_OF_CONFIGS}
    return [_config(value) for value in content] if isinstance(content, list) else content


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise ModelError(f"The model's {path.name} is no JSON object.", hint="Download the model folder again.")
    return content
