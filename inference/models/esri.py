"""Esri model definitions (.emd): translate what Kestrel runs, refuse the rest by name.

What selects the detector, in this order:
1. a raster function of the package's own (InferenceFunction names a member that is not one of Esri's generic files):
   a program, which runs after consent. DeepForest's TreeDetector.py is none: its network is built here;
2. Framework "ONNX" and "torchvision": weights as data; the member "Kestrel" holds what an .emd has no word for
   (docs/definition.md). It, or a configuration that Kestrel knows, comes before 1;
3. Framework "TensorFlow" with ModelConfiguration "ObjectDetectionAPI";
4. Framework "arcgis.learn...": a family that Kestrel builds (esri_families.py); where it cannot, the package's copy of
   the model in ONNX or TorchScript.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import ModelError, ModelPackageError, ModelUnsupportedError
from .arguments import ARGUMENT_NAMES, ArgumentSpec
from .definition import (
    MAX_STRIDE,
    READING_OPTIONS,
    InputSpec,
    ModelDefinition,
    Reader,
    TileSpec,
    check_schema,
    default_arguments,
    definition_from_json,
    detector_options,
    fitting,
    following_from,
)
from .esri_facts import facts_of, read_classes
from .esri_families import (
    DEEP_FOREST,
    FAMILIES,
    Family,
    checked_classes,
    default_arguments_of,
    family_name,
    family_of,
    is_arcgis_name,
    label_offset,
    network_options,
    own_arguments,
    stated_backbone,
)
from .esri_files import (
    FROZEN,
    GRAPH,
    NETWORK,
    WEIGHTS,
    EmdReader,
    ReadMember,
    exported_graph,
    inference_function,
    is_generic,
    own_program,
    plain_path,
    traced_network,
    weights_member,
)
from .esri_input import (
    SERVICES,
    arcgis_input,
    cell_size,
    copy_input,
    extract_bands,
    preprocessing,
    stated_range,
    tile_side,
)
from .esri_refusals import configuration_of, legacy_framework, refuse_other_tasks, refuse_template

_KIND_OF_FRAMEWORK = {"onnx": "onnx", "torchvision": "torchvision"}
_HEAD_OF_CONFIGURATION = {"yolov8": "yolov8", "yolov5": "yolov5", "boxes": "boxes"}
_RUN = ("ONNX", "torchvision", "TensorFlow with ObjectDetectionAPI", "arcgis.learn")

_OBJECT_DETECTION_API = "objectdetectionapi"
_LEGACY_FUNCTIONS = ("objectdetector.py", "imageclassifier.py", "objectclassifier.py", "instancedetector.py")
"""Esri's generic functions of the older frameworks, which hold no model either."""

_TREE_DETECTOR = "treedetector.py"
_TREE_CHIP = 400
_TREE_PADDING = 20  # an overlap of 5 % of the tile
_CHIP = 512
_MAX_SOURCE_BYTES = 2 * 2**20

_OURS = (
    "schema", "head", "architecture", "label_offset", *READING_OPTIONS, "input", "padding", "stride",
    "receptive_field_radius", "arguments",
)  # fmt: skip
_SHARED = ("schema", "stride", "receptive_field_radius", "arguments")


def definition_from_emd(
    data: Mapping[str, Any], members: Sequence[str], read: ReadMember | None = None, stem: str = ""
) -> ModelDefinition:
    """Translate an .emd.

    Args:
        data: The JSON object.
        members: Names of the package's files, counted from the definition's folder; none for a definition given as
            text.
        read: Gives at most so many bytes of one of them.
        stem: The definition file's name without its end.

    Raises:
        ModelPackageError: it is no model definition, or a member is not what it should be.
        ModelUnsupportedError: a model of a kind that Kestrel does not run.
        ModelIncompatibleError: parts of the definition that do not fit together.
    """
    emd = EmdReader(data, members, read, stem)
    if "definition" in emd.child("Kestrel").data:
        return _whole(emd)
    refuse_template(emd)
    is_arcgis = _is_arcgis(emd)
    refuse_other_tasks(emd, is_named=is_arcgis or not emd.word("Framework"))
    return _assembled(emd, _selected(emd, own_program(emd) or _program_of_text(emd), is_arcgis=is_arcgis))


def _whole(emd: EmdReader) -> ModelDefinition:
    """Give the definition of Kestrel's own that an .emd holds as a whole."""
    extra = emd.child("Kestrel")
    check_schema(extra, "schema", 1)
    extra.only("schema", "definition")
    found = definition_from_json(extra.child("definition").data)
    return replace(found, facts=facts_of(emd, found.input.bands))


@dataclass(frozen=True)
class _Model:
    """What depends on the kind of model."""

    kind: str
    weights: str
    input: InputSpec
    options: Mapping[str, Any] = field(default_factory=dict)
    chip: int = _CHIP
    padding: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    common_arguments: tuple[str, ...] = ARGUMENT_NAMES
    own_arguments: tuple[ArgumentSpec, ...] = ()
    geometry: str = "box"
    program: str = ""
    only_class: str = ""
    """Name of the class where the definition lists none."""
    facts: Mapping[str, Any] = field(default_factory=dict)


def _selected(emd: EmdReader, program: str, *, is_arcgis: bool) -> _Model:
    framework, configuration = emd.word("Framework").lower(), configuration_of(emd).lower()
    weights = emd.word("ModelFile").lower()
    if _is_deep_forest(emd, program or inference_function(emd)):
        return _deep_forest(emd)
    if framework in _KIND_OF_FRAMEWORK and (not program or _is_ours(emd, framework, configuration)):
        return _plain(emd, _KIND_OF_FRAMEWORK[framework])
    is_generic_program = plain_path(program).rpartition("/")[2].lower() in _LEGACY_FUNCTIONS
    if framework in ("tensorflow", "") and configuration == _OBJECT_DETECTION_API and (
        not program or is_generic_program
    ):  # fmt: skip
        return _tensorflow(emd)
    if program:
        return _python(emd, program)
    if is_arcgis:
        return _arcgis(emd)
    if not framework and weights.endswith(GRAPH):
        emd.note("The definition names no Framework; its file is an ONNX graph and is run as one.")
        return _plain(emd, "onnx")
    raise _unsupported(emd)


def _is_arcgis(emd: EmdReader) -> bool:
    framework = emd.word("Framework").lower()
    if framework:
        return framework.startswith("arcgis")
    is_known = is_arcgis_name(emd.word("ModelName")) or is_arcgis_name(configuration_of(emd))
    if is_known:
        emd.note("The definition names no Framework; from ModelName and ModelConfiguration it is arcgis.learn's.")
    return is_known


def _is_ours(emd: EmdReader, framework: str, configuration: str) -> bool:
    return "Kestrel" in emd.data or framework == "torchvision" or configuration in _HEAD_OF_CONFIGURATION


def _program_of_text(emd: EmdReader) -> str:
    """Give the program that a definition given as text names by its absolute path."""
    function = inference_function(emd)
    plain = plain_path(function)
    is_absolute = plain.startswith("/") or plain[1:2] == ":"
    is_own = plain.lower().endswith(".py") and not is_generic(function)
    return function if not emd.members and is_absolute and is_own else ""


def _unsupported(emd: EmdReader) -> ModelError:
    framework, function = emd.word("Framework"), inference_function(emd)
    base = plain_path(function).rpartition("/")[2].lower()
    if not framework and not function and "ModelFile" not in emd.data:
        return ModelPackageError(
            "This JSON is no model definition: it has neither 'Framework' nor 'kestrel_definition'.",
            hint="See docs/definition.md for the form of a definition.",
        )
    if base.endswith(".py") and not is_generic(function) and base not in _LEGACY_FUNCTIONS:
        return ModelPackageError(
            f"The model definition names the program '{function}', but the package does not hold it.",
            hint="Put the file beside the .emd. A definition given as text names it by its absolute path.",
        )
    return legacy_framework(framework, configuration_of(emd), _RUN)


# -- The kinds of models -----------------------------------------------------------------------------------------------


def _plain(emd: EmdReader, kind: str) -> _Model:
    """Give a model that is data and says itself how its pixels are scaled."""
    extra = emd.child("Kestrel")
    configuration = configuration_of(emd)
    options = detector_options(extra)
    if configuration.lower() in _HEAD_OF_CONFIGURATION:
        options.setdefault("head", _HEAD_OF_CONFIGURATION[configuration.lower()])
    elif configuration and not is_arcgis_name(configuration):
        options.setdefault("architecture", configuration)
    suffixes = GRAPH if kind == "onnx" else NETWORK
    weights = weights_member(emd, suffixes)
    spec = _plain_input(emd, extra.child("input"))
    return _Model(kind, weights, spec, options, tile_side(emd, _CHIP), **following_from(kind, weights, options))


def _plain_input(emd: EmdReader, extra: Reader) -> InputSpec:
    extra.only("scale", "mean", "std", "order", "pad_value", "resize", "assumed")
    bands = extract_bands(emd)
    order = extra.text("order", "RGB").upper()
    if order not in ("RGB", "BGR"):
        raise extra.refuse("order", "RGB or BGR")
    return InputSpec(
        bands=bands[::-1] if order == "BGR" else bands,
        scale=extra.factors("scale", 1.0, len(bands)),
        mean=extra.factors("mean", 0.0, len(bands)),
        std=extra.factors("std", 1.0, len(bands)),
        data_range=stated_range(emd),
        **fitting(extra),
    )


def _arcgis(emd: EmdReader) -> _Model:
    """Give a model of arcgis.learn: built by Kestrel, or else a copy in the package that can be run."""
    name = family_name(emd, configuration_of(emd))
    chip = tile_side(emd, _CHIP)
    checked_classes(emd, f"a {name or 'network'}")
    try:
        family = family_of(emd, name)
    except ModelUnsupportedError as error:
        return _copy_of(emd, name, chip, error)
    weights = weights_member(emd, NETWORK)
    if weights.lower().endswith(GRAPH):
        return _as_graph(emd, family, chip, weights)
    return _of_family(emd, family, chip, "arcgis", weights)


def _of_family(emd: EmdReader, family: Family, chip: int, kind: str, weights: str) -> _Model:
    steps = preprocessing(emd)
    spec = replace(
        arcgis_input(emd, family.name), service=next((SERVICES[step] for step in steps if step in SERVICES), "")
    )
    options = network_options(emd, family, chip) if family.name.lower() in FAMILIES else {"family": family.name}
    names = [*family.own_arguments]
    if "SentinelService" in steps:
        names.append("radiometric_offset_correction")
    # A building that is larger than the padding is better cut than missing: ArcGIS does not filter outlines either.
    unfiltered = {"exclude_pad_detections": False} if family.geometry == "polygon" else {}
    hidden = {*unfiltered, *(() if _is_variable(emd) else ("tile_size",))}
    return _Model(
        kind=kind,
        weights=weights,
        input=spec,
        options=options,
        chip=chip,
        padding=chip // 4,
        arguments={**default_arguments_of(emd, family.threshold, family.nms_overlap, chip), **unfiltered},
        common_arguments=tuple(name for name in ARGUMENT_NAMES if name not in hidden),
        own_arguments=own_arguments(emd, tuple(names)),
        geometry=family.geometry,
        facts={"family": family.name, "backbone": options.get("backbone") or stated_backbone(emd)},
    )


def _copy_of(emd: EmdReader, name: str, chip: int, error: ModelError) -> _Model:
    """Give the copy of a model in ONNX or TorchScript form that stands in for one that Kestrel does not build.

    Raises:
        ModelError: the given error; the package holds no such copy.
    """
    family = FAMILIES.get(name.lower(), Family(name or "unnamed", (), ""))
    graph, traced = exported_graph(emd), traced_network(emd)
    if graph:
        emd.note(f"{error.message} Its copy in ONNX form, '{graph}', is used instead.")
        return _as_graph(emd, family, chip, graph)
    if traced:
        emd.note(f"{error.message} Its copy in TorchScript form, '{traced}', is used instead.")
        model = _of_family(emd, family, chip, "torchscript", traced)
        return replace(
            model, options={"label_offset": label_offset(family.name)}, program=traced,
            input=copy_input(model.input, emd, family.name),
            own_arguments=own_arguments(emd, ("return_bboxes",) if family.geometry == "polygon" else ()),
        )  # fmt: skip
    raise error


def _as_graph(emd: EmdReader, family: Family, chip: int, graph: str) -> _Model:
    """Give a model that is run from its ONNX form, which decodes its boxes itself."""
    model = _of_family(emd, family, chip, "onnx", graph)
    return replace(
        model, options={"label_offset": label_offset(family.name)}, geometry="box", own_arguments=(),
        input=copy_input(model.input, emd, family.name),
    )  # fmt: skip


def _is_deep_forest(emd: EmdReader, program: str) -> bool:
    """Recognise DeepForest's tree detector: its program only calls the library, whose network Kestrel builds."""
    weights = plain_path(emd.word("ModelFile")).lower()
    is_network = weights.endswith(NETWORK) or not weights
    is_known = "neon" in weights or emd.word("Framework").lower() in ("pytorch", "")
    return plain_path(program).rpartition("/")[2].lower() == _TREE_DETECTOR and is_network and is_known


def _deep_forest(emd: EmdReader) -> _Model:
    chip = tile_side(emd, _TREE_CHIP)
    emd.note("The package's program TreeDetector.py is not run: Kestrel builds DeepForest's network itself.")
    weights = weights_member(emd, NETWORK)
    model = _of_family(emd, DEEP_FOREST, chip, "arcgis", weights)
    options = {"family": DEEP_FOREST.name, "backbone": DEEP_FOREST.backbone}
    padding = _TREE_PADDING * chip // _TREE_CHIP
    return replace(
        model, options=options, padding=padding, common_arguments=ARGUMENT_NAMES, only_class="Tree",
        facts={"family": DEEP_FOREST.name, "backbone": DEEP_FOREST.backbone},
    )  # fmt: skip


def _tensorflow(emd: EmdReader) -> _Model:
    if not emd.word("Framework"):
        emd.note("The definition names no Framework; from ModelConfiguration it is TensorFlow.")
    chip = tile_side(emd, _CHIP)
    is_instance = emd.word("ModelType").lower().startswith("instance")
    return _Model(
        kind="tensorflow",
        weights=weights_member(emd, FROZEN),
        input=InputSpec(bands=extract_bands(emd), data_range=stated_range(emd)),
        chip=chip,
        padding=0,
        # Its tiles do not overlap unless asked to: what their edges cut would be lost otherwise.
        arguments={**default_arguments_of(emd, 0.6, 0.1, chip), "exclude_pad_detections": False},
        own_arguments=own_arguments(emd, ("return_bboxes",) if is_instance else ()),
        geometry="polygon" if is_instance else "box",
        facts={"family": "ObjectDetectionAPI"},
    )


def _python(emd: EmdReader, program: str) -> _Model:
    """Give a raster function of the package's own; its arguments are read from its text, which is not run."""
    sides = [emd.integer(key, None, minimum=8, maximum=2**15) for key in ("ImageHeight", "ImageWidth")]
    return _Model(
        kind="python",
        weights=weights_member(emd, WEIGHTS) if emd.data.get("ModelFile") or emd.data.get("ModelFiles") else "",
        input=InputSpec(bands=extract_bands(emd), data_range=stated_range(emd)),
        chip=sides[0] or sides[1] or _CHIP,
        common_arguments=(),
        own_arguments=_arguments_of_program(emd, program),
        geometry="any",
        program=program,
        only_class="Object",
        facts={"family": "raster function", "program": program},
    )


def _arguments_of_program(emd: EmdReader, program: str) -> tuple[ArgumentSpec, ...]:
    from .static_arguments import static_arguments  # here, because most models have no program

    if emd.read is None:
        return ()
    return static_arguments(emd.read(program, _MAX_SOURCE_BYTES), plain_path(program).rpartition("/")[2])


# -- What all kinds have in common -------------------------------------------------------------------------------------


def _assembled(emd: EmdReader, model: _Model) -> ModelDefinition:
    extra = emd.child("Kestrel")
    check_schema(extra, "schema", 1)
    extra.only(*(_OURS if model.kind in _KIND_OF_FRAMEWORK.values() else _SHARED))
    classes = read_classes(emd, model.only_class)
    _tell_type(emd, model)
    if emd.data.get("resize_to") not in (None, "", model.chip, [model.chip, model.chip]):
        emd.note(
            f"The model was trained on images resized to {str(emd.data['resize_to'])[:40]} pixels: it may want a "
            "coarser cell size than the package says."
        )
    return ModelDefinition(
        name=_name(emd),
        version=str(emd.data.get("ModelVersion") or emd.data.get("Version") or ""),
        description=str(emd.data.get("Description") or ""),
        license=str(emd.data.get("License") or ""),
        kind=model.kind,
        weights=model.weights,
        options=model.options,
        input=model.input,
        tile=TileSpec(
            size=model.chip,
            is_variable=_is_variable(emd),
            padding=extra.integer("padding", model.padding),
            stride=extra.integer("stride", None, minimum=1, maximum=MAX_STRIDE),
            receptive_field_radius=extra.integer("receptive_field_radius", None),
        ),
        cell_size=cell_size(emd),
        classes=classes,
        arguments={**model.arguments, **default_arguments(extra)},
        is_map_space=str(emd.data.get("ImageSpaceUsed", "MAP_SPACE")).upper() == "MAP_SPACE",
        geometry=model.geometry,
        common_arguments=model.common_arguments,
        own_arguments=model.own_arguments,
        program=model.program,
        notes=tuple(emd.notes),
        facts=facts_of(emd, model.input.bands, **model.facts),
    )


def _is_variable(emd: EmdReader) -> bool:
    return str(emd.data.get("SupportsVariableTileSize", False)).lower() in ("true", "1")


def _name(emd: EmdReader) -> str:
    """Give the model's name; an arcgis.learn ModelName is that of its class, so that the file's name says more."""
    title = "" if is_arcgis_name(emd.word("ModelName")) and emd.stem else emd.data.get("ModelName")
    return str(title or emd.data.get("Name") or emd.stem or "Model")


def _tell_type(emd: EmdReader, model: _Model) -> None:
    stated = emd.word("ModelType")
    if stated.lower() == "objectiondetection":
        emd.note(f"ModelType '{stated}' was read as 'ObjectDetection'.")
    if not stated and model.kind != "python" and model.facts.get("family") not in ("MaskRCNN", DEEP_FOREST.name):
        emd.note("The definition names no ModelType; it is taken for an object detector.")
