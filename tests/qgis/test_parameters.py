"""The parameters are the public API: their keys, types and defaults do not change by accident."""

from __future__ import annotations

from qgis.core import Qgis

from kestrel.processing_provider.parameters import output_table, parameter_table
from kestrel.tests.qgis.examples import algorithm

PARAMETERS = {
    "INPUT": ("raster", None, "optional"),
    "MORE_INPUTS": ("multilayer", None, "optional"),
    "AS_DISPLAYED": ("boolean", False, "required advanced"),
    "RENDER_LAYERS": ("multilayer", None, "optional advanced"),
    "INPUT_SOURCE": ("string", None, "optional advanced"),
    "PROCESSING_MODE": ("enum", "PROCESS_AS_MOSAICKED_IMAGE", "required advanced"),
    "MODEL": ("string", None, "required"),
    "ARGUMENTS": ("string", None, "optional"),
    "OBJECTS_OF_INTEREST": ("string", None, "optional"),
    "EXTENT": ("extent", None, "optional"),
    "MASK": ("source", None, "optional"),
    "CELL_SIZE": ("number", None, "optional advanced"),
    "CELL_SIZE_UNIT": ("enum", "Raster", "required advanced"),
    "CELL_SIZE_LAYER": ("raster", None, "optional advanced"),
    "SNAP_RASTER": ("raster", None, "optional advanced"),
    "RESAMPLING": ("enum", "Automatic", "required advanced"),
    "BANDS": ("string", None, "optional advanced"),
    "RUN_NMS": ("boolean", False, "required"),
    "MAX_OVERLAP_RATIO": ("number", 0.0, "required"),
    "CONFIDENCE_SCORE_FIELD": ("string", "Confidence", "required advanced"),
    "CLASS_VALUE_FIELD": ("string", "Class", "required advanced"),
    "PROCESSOR_TYPE": ("enum", "Auto", "required advanced"),
    "GPU_ID": ("number", None, "optional advanced"),
    "PARALLEL_PROCESSING_FACTOR": ("string", "100%", "optional advanced"),
    "MAX_TILES": ("number", 100_000, "required advanced"),
    "PLAN_ONLY": ("boolean", False, "required advanced"),
    "ALLOW_PACKAGE_CODE": ("string", None, "optional advanced"),
    "AUTHENTICATION": ("authcfg", None, "optional advanced"),
    "PORTAL": ("string", None, "optional advanced"),
    "OUTPUT_CRS": ("crs", None, "optional advanced"),
    "APPEND_TO": ("vector", None, "optional advanced"),
    "FIELD_MAP": ("string", None, "optional advanced"),
    "OUTPUT_SERVICE": ("string", None, "optional advanced"),
    "SUMMARY_FILE": ("fileDestination", None, "optional advanced"),
    "OUTPUT": ("sink", None, "optional"),
}


def test_keys_types_and_defaults_are_what_scripts_rely_on() -> None:
    flag, owner, found = Qgis.ProcessingParameterFlag, algorithm(), {}
    for definition in owner.parameterDefinitions():
        words = ["optional" if definition.flags() & flag.Optional else "required"]
        words += ["advanced"] if definition.flags() & flag.Advanced else []
        found[definition.name()] = (definition.type(), definition.defaultValue(), " ".join(words))
    assert found == PARAMETERS


def test_outputs_are_what_scripts_and_models_rely_on() -> None:
    owner = algorithm()
    found = {output.name(): output.type() for output in owner.outputDefinitions()}
    assert found == {
        "OUTPUT": "outputVector",
        "OBJECT_COUNT": "outputNumber",
        "CLASS_COUNTS": "outputString",
        "TILE_COUNT": "outputNumber",
        "ELAPSED_SECONDS": "outputNumber",
        "JOB_ID": "outputString",
        "SUMMARY_FILE": "outputFile",
        "SUMMARY": "outputString",
        "OUT_OBJECTS": "outputString",
        "PLAN": "outputString",
    }


def test_every_row_has_a_label_and_a_help_that_is_a_sentence() -> None:
    rows = [*parameter_table(), *output_table()]
    assert [row.key for row in rows if not row.label or not row.help.endswith(".")] == []


def test_the_help_of_the_algorithm_tells_every_parameter() -> None:
    text = algorithm().shortHelpString()
    assert [row.label for row in parameter_table() if f"<h3>{row.label}</h3>" not in text] == []


def test_the_processor_is_given_as_a_word() -> None:
    owner = algorithm()
    definition = owner.parameterDefinition("PROCESSOR_TYPE")
    assert (definition.options(), definition.usesStaticStrings()) == (["Auto", "CPU", "GPU"], True)


def test_model_and_arguments_are_plain_strings_with_widgets_of_their_own() -> None:
    owner = algorithm()
    found = {
        key: owner.parameterDefinition(key).metadata()["widget_wrapper"]["widget_type"]
        for key in ("MODEL", "ARGUMENTS")
    }
    assert found == {"MODEL": "kestrel:model", "ARGUMENTS": "kestrel:arguments"}


def test_the_algorithm_runs_in_a_thread_and_can_be_cancelled() -> None:
    flags, flag = algorithm().flags(), Qgis.ProcessingAlgorithmFlag
    assert (bool(flags & flag.NoThreading), bool(flags & flag.CanCancel)) == (False, True)


def test_name_icon_and_tags_are_there() -> None:
    found = algorithm()
    assert (found.id(), found.displayName()) == ("kestrel:detectobjects", "Detect Objects Using Deep Learning")
    assert not found.icon().isNull()
    assert "deep learning" in found.tags()
