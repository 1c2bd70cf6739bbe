"""The files that an .emd names, found among the package's members in all the ways that real definitions write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import ModelPackageError
from .definition import Reader
from .esri_refusals import text_of

ReadMember = Callable[[str, int], bytes]
"""Gives at most so many bytes of a member, named as the definition names it."""

NETWORK = (".pth", ".pt", ".safetensors")
GRAPH = (".onnx",)
FROZEN = (".pb",)
WEIGHTS = (*NETWORK, *GRAPH, *FROZEN, ".h5", ".model", ".hdf5", ".keras", ".ckpt")
SAVED_MODEL = "saved_model.pb"

_FUNCTIONS = "[functions]"  # Esri's own folder of raster functions
_GENERIC = "arcgis"  # how the names of arcgis.learn's raster functions begin: they hold no model
_ESCAPED = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f", "\v": "\\v", "\a": "\\a"}


class EmdReader(Reader):
    """An .emd, the names of the files beside it, and what the user should hear about it."""

    def __init__(
        self, data: Mapping[str, Any], members: Sequence[str], read: ReadMember | None = None, stem: str = ""
    ) -> None:
        """Keep the parts.

        Args:
            data: The JSON object.
            members: Names of the package's files, counted from the definition's folder. None at all: a definition
                given as text, whose files are not known.
            read: How to read one of them.
            stem: The definition file's name without its end.
        """
        super().__init__(data)
        self.members = tuple(members)
        self.read = read
        self.stem = stem
        self.notes: list[str] = []
        self._by_lower: dict[str, list[str]] = {}
        for name in self.members:
            self._by_lower.setdefault(name.lower(), []).append(name)

    def note(self, text: str) -> None:
        """Remember something that the user should hear."""
        if text not in self.notes:
            self.notes.append(text)

    def word(self, key: str) -> str:
        """Give a member as text; empty where it is absent or no plain value."""
        return text_of(self, key)

    def find(self, name: str) -> str:
        """Give the member of that name, in whatever case if that is the only one; empty where there is none."""
        if name in self.members:
            return name
        others = self._by_lower.get(name.lower(), [])
        return others[0] if len(others) == 1 else ""

    def ending(self, *suffixes: str) -> list[str]:
        """Give the members with these ends that lie beside the definition."""
        return [name for name in self.members if "/" not in name and name.lower().endswith(suffixes)]


def own_program(emd: EmdReader) -> str:
    """Give the member that is the package's own raster function, or nothing.

    Esri's generic functions (ArcGISObjectDetector.py, ..., and those of "[Functions]System") are none: they hold no
    model, need arcgis.learn, and are never run.
    """
    function = inference_function(emd)
    if not function.lower().endswith(".py") or is_generic(function):
        return ""
    plain = plain_path(function)
    return emd.find(plain) or (emd.find(_base(plain)) if _is_absolute(plain) else "")


def inference_function(emd: Reader) -> str:
    """Give InferenceFunction as it is meant: a backslash may have been taken for the start of a line break."""
    return _unbroken(text_of(emd, "InferenceFunction"))


def is_generic(function: str) -> bool:
    """Tell whether a raster function is one of Esri's own."""
    lower = function.lower()
    return lower.startswith(_FUNCTIONS) or _base(plain_path(lower)).startswith(_GENERIC)


def weights_member(emd: EmdReader, suffixes: tuple[str, ...]) -> str:
    """Give the member that ModelFile means; as it is written where there is none, so that opening it is refused.

    Args:
        emd: The definition.
        suffixes: Ends of the files that such a model can have, in lower case.

    Raises:
        ModelPackageError: ModelFile is absent, and it is not clear which file is meant; or it is no text.
    """
    stated = _stated(emd)
    if not stated:
        return _only_weights(emd, suffixes)
    if not emd.members:
        return stated
    plain = plain_path(stated)
    member = emd.find(plain) or _saved_model(emd, plain) or _elsewhere(emd, plain) or _completed(emd, plain, suffixes)
    if member and member.lower() not in (plain.lower(), f"{plain}/{SAVED_MODEL}".lower()):
        emd.note(f"ModelFile says '{stated}'; the package's file '{member}' was taken for it.")
    elif member and member != plain and not member.endswith(SAVED_MODEL):
        emd.note(f"ModelFile says '{stated}'; the package's file is called '{member}'.")
    return member or stated


def _stated(emd: EmdReader) -> str:
    several = emd.data.get("ModelFiles")
    if "ModelFile" not in emd.data and isinstance(several, list) and len(several) == 1 and isinstance(several[0], str):
        return _unbroken(several[0].strip())
    return _unbroken(emd.text("ModelFile", "").strip())


def _only_weights(emd: EmdReader, suffixes: tuple[str, ...]) -> str:
    found = emd.ending(*suffixes)
    if len(found) > 1:
        raise ModelPackageError(
            f"The model definition's member 'ModelFile' is missing, and the package holds several models: "
            f"{', '.join(sorted(found)[:8])}.",
            hint='Name one of them in the .emd: "ModelFile": "name".',
        )
    if not found:
        raise ModelPackageError(
            "The model definition's member 'ModelFile' is missing; expected the name of the file with the weights.",
            hint=f"Put the weights ({', '.join(suffixes)}) beside the .emd, and name them there.",
        )
    emd.note(f"The definition names no ModelFile; the only one in the package, '{found[0]}', was taken.")
    return found[0]


def _saved_model(emd: EmdReader, plain: str) -> str:
    folder = plain.rstrip("/")
    return emd.find(f"{folder}/{SAVED_MODEL}")


def _elsewhere(emd: EmdReader, plain: str) -> str:
    """Give the member of the base name of a path on the computer where the model was trained."""
    if not _is_absolute(plain):
        return ""
    base = _base(plain).lower()
    found = [name for name in emd.members if base and _base(name).lower() == base]
    return emd.find(base) or (found[0] if len(found) == 1 else "")


def _completed(emd: EmdReader, plain: str, suffixes: tuple[str, ...]) -> str:
    """Give the only member that has the name and one of the ends."""
    found = [member for suffix in suffixes for member in [emd.find(plain + suffix)] if member]
    return found[0] if len(found) == 1 else ""


def exported_graph(emd: EmdReader) -> str:
    """Give the member that is the model in ONNX form, or nothing."""
    return _named_or_beside(emd, "ONNX", ("INFER", "CPU", "GPU"), (".onnx",))


def traced_network(emd: EmdReader) -> str:
    """Give the member that is the model as a TorchScript for the CPU, or nothing."""
    return _named_or_beside(emd, "TorchScript", ("CPU", "GPU"), ("-cpu.pt", "_cpu.pt", "-gpu.pt"))


def _named_or_beside(emd: EmdReader, key: str, places: tuple[str, ...], ends: tuple[str, ...]) -> str:
    value = emd.data.get(key)
    named = [value.get(place) for place in places] if isinstance(value, Mapping) else [value]
    names = [plain_path(_unbroken(name)) for name in named if isinstance(name, str)]
    stated = plain_path(emd.word("ModelFile")).rpartition(".")[0]
    beside = [stem + end for end in ends for stem in (stated, emd.stem) if stem]
    return next((member for member in map(emd.find, [*names, *beside]) if member), "")


def plain_path(name: str) -> str:
    """Give a path as members are named: forward slashes, no dot in front."""
    plain = name.strip().replace("\\", "/")
    while plain.startswith("./"):
        plain = plain[2:]
    return plain


def _is_absolute(plain: str) -> bool:
    return plain.startswith("/") or plain[1:2] == ":"


def _base(plain: str) -> str:
    return plain.rpartition("/")[2]


def _unbroken(text: str) -> str:
    """Undo what became of a path whose backslashes are not doubled: that of "models" and "new.pb" is a line break."""
    return "".join(_ESCAPED.get(character, character) for character in text)
