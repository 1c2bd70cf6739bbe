"""What networks of open vocabulary look for: a text, cut into phrases and read by the model's own tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..errors import JobError, ModelError, first_line

MAX_PHRASES = 100
_SHORT = 16  # tokens of one phrase that OWL-ViT and OWLv2 read
_JOINT = ("grounding-dino", "mm-grounding-dino")


@dataclass(frozen=True, eq=False)
class Prompt:
    """Phrases as the network reads them.

    Attributes:
        phrases: In the words of the user.
        tensors: What goes into the network for one image.
        is_joint: All phrases stand in one text, and the network scores tokens.
        phrase_of_token: Number of the phrase that each token belongs to, -1 for none.
    """

    phrases: tuple[str, ...]
    tensors: Mapping[str, torch.Tensor]
    is_joint: bool
    phrase_of_token: torch.Tensor

    def on(self, device: str) -> Prompt:
        """Give the prompt on a device."""
        tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return replace(self, tensors=tensors, phrase_of_token=self.phrase_of_token.to(device))

    def inputs(self, n: int) -> dict[str, torch.Tensor]:
        """Give what goes into the network for `n` images."""
        return {name: tensor.repeat(n, 1) for name, tensor in self.tensors.items()}


def parse_prompt(text: str) -> tuple[str, ...]:
    """Cut a text into phrases, at full stops, commas, semicolons and ends of lines; each one once.

    Raises:
        JobError: there is none, or there are too many.
    """
    phrases = [" ".join(part.split()) for part in re.split(r"[.,;\n]", text)]
    unique = tuple({phrase.casefold(): phrase for phrase in reversed(phrases) if phrase}.values())[::-1]
    if not 0 < len(unique) <= MAX_PHRASES:
        raise JobError(
            f"The text_prompt names {len(unique)} things to look for; expected 1 to {MAX_PHRASES}.",
            hint="Write for example: tree. car. building",
            argument="text_prompt",
        )
    return unique


def read_prompt(
    library: ModuleType, place: Path, phrases: tuple[str, ...], architecture: str, config: Any
) -> Prompt:  # fmt: skip
    """Read phrases with the tokenizer in a model folder.

    Raises:
        JobError: a phrase is too long for the network.
        ModelError: the tokenizer cannot be used.
    """
    try:
        tokenizer = library.AutoTokenizer.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
        if architecture in _JOINT:
            return _joint(tokenizer, phrases, int(getattr(config, "max_text_len", 256)))
        return _apart(tokenizer, phrases, int(getattr(config.text_config, "max_position_embeddings", _SHORT)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise ModelError(
            f"The model's tokenizer cannot be used: {first_line(error)}.", hint="Download the model folder again."
        ) from error


def _apart(tokenizer: Any, phrases: tuple[str, ...], most: int) -> Prompt:
    """Read each phrase by itself, filled up to one length."""
    for phrase in phrases:
        _check_length(len(tokenizer(phrase)["input_ids"]), most, phrase)
    read = tokenizer(list(phrases), padding="max_length", max_length=most, return_tensors="pt")
    tensors = {name: read[name] for name in ("input_ids", "attention_mask")}
    return Prompt(phrases, tensors, is_joint=False, phrase_of_token=torch.empty(0, dtype=torch.int64))


def _joint(tokenizer: Any, phrases: tuple[str, ...], most: int) -> Prompt:
    """Read all phrases as one text, in small letters with a full stop after each, as these networks were trained."""
    read = tokenizer(". ".join(phrase.lower() for phrase in phrases) + ".", return_tensors="pt")
    (tokens,) = read["input_ids"].tolist()
    _check_length(len(tokens), most, ". ".join(phrases))
    stop, special = tokenizer.convert_tokens_to_ids("."), set(tokenizer.all_special_ids)
    owners, number = [], 0
    for token in tokens:
        is_part = token != stop and (token not in special or token == tokenizer.unk_token_id)
        owners.append(number if is_part else -1)
        number += token == stop
    tensors = {name: read[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in read}
    return Prompt(phrases, tensors, is_joint=True, phrase_of_token=torch.tensor(owners))


def _check_length(n: int, most: int, phrase: str) -> None:
    if n > most:
        raise JobError(
            f"The text_prompt '{phrase[:100]}' has {n} tokens, and the model reads {most}.",
            hint="Use fewer or shorter words.",
            argument="text_prompt",
        )
