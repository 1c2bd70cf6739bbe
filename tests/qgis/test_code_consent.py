"""Programs of packages run only after consent to their exact content, and never when the administrator says so."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qgis.core import QgsApplication, QgsSettings

from kestrel.inference.errors import JobError
from kestrel.inference.models.package import ModelPackage, open_package
from kestrel.processing_provider import code_consent
from kestrel.processing_provider.code_consent import (
    Consent,
    allow,
    allow_this_time,
    consent_to,
    parse_hashes,
    revoke,
    sha256_of,
    trusted_programs,
)
from kestrel.processing_provider.job_builder import build_plan
from kestrel.tests.qgis.examples import (
    Listener,
    algorithm,
    context,
    refusal,
    write_interpreter,
    write_mask_rcnn,
    write_program,
    write_raster,
)

HASH = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def nothing_allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No program is allowed before and after a test."""
    QgsSettings().remove("kestrel/trusted_code")
    code_consent._this_time.clear()
    monkeypatch.delenv("QGIS_GLOBAL_SETTINGS_FILE", raising=False)
    yield
    QgsSettings().remove("kestrel/trusted_code")
    code_consent._this_time.clear()


@pytest.fixture
def good(tmp_path: Path) -> dict[str, Any]:
    """Parameters that nothing is wrong with, but that the model is a program."""
    return {
        "INPUT": write_raster(tmp_path / "raster.tif", values=(0, 255)),
        "MODEL": write_program(tmp_path / "finder.dlpk"),
        "OUTPUT": str(tmp_path / "out.gpkg"),
    }


@pytest.fixture
def package(good: dict[str, Any]) -> ModelPackage:
    """Its package."""
    return open_package(good["MODEL"])


def administrator_says(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = folder / "global.ini"
    path.write_text(f"[kestrel]\n{text}\n")
    monkeypatch.setenv("QGIS_GLOBAL_SETTINGS_FILE", str(path))


def test_a_program_is_refused_with_its_files_its_hash_and_both_ways_to_allow_it(
    good: dict[str, Any], package: ModelPackage
) -> None:
    assert refusal(good) == (
        "The model 'Finder of trees' is a program ('Finder.py' with 3 more files), and nobody has allowed this exact "
        "content to run. Only if you trust where it comes from: in the dialog, press 'Look and allow\u2026' below the "
        f"model; without a window, set ALLOW_PACKAGE_CODE={sha256_of(package)}. [untrusted-code]"
    )


def test_a_run_without_a_window_fails_with_the_stable_id(good: dict[str, Any]) -> None:
    feedback = Listener()
    assert not algorithm().run(good, context(), feedback)[1]
    (said,) = [text for level, text in feedback.said if level == "error"]
    assert re.search(r"ALLOW_PACKAGE_CODE=[0-9a-f]{64}\. \[untrusted-code\]", said)


@pytest.mark.parametrize("spelling", ["{}", "{} ", '["{}"]', "sha256:{}", HASH + ",{}"])
def test_the_right_hash_lets_it_run_and_goes_into_the_job(
    good: dict[str, Any], package: ModelPackage, spelling: str
) -> None:
    sha256 = sha256_of(package)
    plan = build_plan(algorithm(), {**good, "ALLOW_PACKAGE_CODE": spelling.format(sha256)}, context())
    assert plan.job.allowed_code == sha256


def test_a_list_of_hashes_is_taken_as_json_does_it(good: dict[str, Any], package: ModelPackage) -> None:
    parameters = {**good, "ALLOW_PACKAGE_CODE": [HASH, sha256_of(package)]}
    assert build_plan(algorithm(), parameters, context()).job.allowed_code == sha256_of(package)
    assert refusal(parameters) == ""


def test_another_hash_does_not(good: dict[str, Any]) -> None:
    assert "ALLOW_PACKAGE_CODE allows another content" in refusal({**good, "ALLOW_PACKAGE_CODE": HASH})


@pytest.mark.parametrize("value", ["yes", "*", HASH[:-1], "[1", '["all"]'])
def test_what_is_no_hash_is_refused(value: str) -> None:
    with pytest.raises(JobError, match="ALLOW_PACKAGE_CODE"):
        parse_hashes(value)


def test_a_model_that_is_data_needs_no_consent(good: dict[str, Any], tmp_path: Path) -> None:
    parameters = {**good, "MODEL": write_mask_rcnn(tmp_path / "roofs.dlpk")}
    assert build_plan(algorithm(), parameters, context()).job.allowed_code == ""


def test_what_was_allowed_for_good_is_kept_in_the_settings_and_can_be_taken_back(
    good: dict[str, Any], package: ModelPackage
) -> None:
    sha256 = sha256_of(package)
    allow(sha256, "Finder\u202e <b>")
    (entry,) = trusted_programs()
    assert (entry.sha256, entry.name) == (sha256, "Finder \u2039b>")
    assert json.loads(QgsSettings().value("kestrel/trusted_code"))[0]["sha256"] == sha256
    assert refusal(good) == ""
    revoke(sha256)
    assert "nobody has allowed" in refusal(good)


def test_what_was_allowed_this_time_is_not_kept(good: dict[str, Any], package: ModelPackage) -> None:
    allow_this_time(sha256_of(package))
    assert refusal(good) == ""
    assert trusted_programs() == []
    revoke(sha256_of(package))
    assert refusal(good) != ""


def test_a_changed_program_is_another_one(good: dict[str, Any], package: ModelPackage) -> None:
    allow(sha256_of(package), "x")
    with zipfile.ZipFile(good["MODEL"], "a") as archive:
        archive.writestr("more.py", "import os\n")
    assert "nobody has allowed" in refusal(good)


def test_the_administrator_can_forbid_programs_whatever_the_user_allowed(
    good: dict[str, Any], package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    administrator_says(tmp_path, monkeypatch, "code_policy=deny")
    sha256 = sha256_of(package)
    allow(sha256, "x")
    allow_this_time(sha256)
    reason = refusal({**good, "ALLOW_PACKAGE_CODE": sha256})
    assert "the administrator of this QGIS does not allow models to run programs" in reason
    assert consent_to(sha256) is Consent.DENIED


def test_the_users_own_settings_cannot_turn_that_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    administrator_says(tmp_path, monkeypatch, "code_policy=deny")
    QgsSettings().setValue("kestrel/code_policy", "ask")
    QgsSettings().setValue("kestrel/trusted_code_global", HASH)
    try:
        assert consent_to(HASH, {HASH}) is Consent.DENIED
    finally:
        QgsSettings().remove("kestrel/code_policy")
        QgsSettings().remove("kestrel/trusted_code_global")


@pytest.mark.parametrize("policy", ["", "code_policy=deny\n"])
@pytest.mark.parametrize("listed", [HASH, f"{'f' * 64}, {HASH.upper()}"])
def test_the_administrator_can_allow_programs_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, listed: str
) -> None:
    administrator_says(tmp_path, monkeypatch, f"{policy}trusted_code_global={listed}")
    assert consent_to(HASH) is Consent.GIVEN


@pytest.mark.parametrize("stored", ["", "no json", "null", "5", "{}", "[1, {}]", '[{"sha256": "short"}]'])
def test_damaged_settings_allow_nothing(stored: str) -> None:
    QgsSettings().setValue("kestrel/trusted_code", stored)
    assert trusted_programs() == []


def test_the_worker_gets_the_hash(good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen.json"
    body = f"(folder / 'job.json').rename({str(seen)!r})\nsay('done', summary={{'tiles': 0}})"
    monkeypatch.setenv("KESTREL_PYTHON", write_interpreter(tmp_path, body))
    monkeypatch.setenv("KESTREL_CACHE", str(tmp_path / "cache"))
    sha256 = sha256_of(open_package(good["MODEL"]))
    algorithm().run({**good, "ALLOW_PACKAGE_CODE": sha256}, context(), Listener(), catchExceptions=False)
    assert json.loads(seen.read_text())["allowed_code"] == sha256


def test_a_package_that_changes_is_hashed_again(good: dict[str, Any]) -> None:
    before = sha256_of(open_package(good["MODEL"]))
    write_program(Path(good["MODEL"]), "print('other')\n")
    os.utime(good["MODEL"], (1, 1))
    assert sha256_of(open_package(good["MODEL"])) != before


def test_in_qgis_window_the_parameter_does_not_stand_for_a_look(
    good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = sha256_of(open_package(good["MODEL"]))
    given = {**good, "ALLOW_PACKAGE_CODE": sha256}
    assert sha256 == build_plan(algorithm(), given, context()).job.allowed_code
    monkeypatch.setattr(code_consent, "has_window", lambda: True)
    reason = refusal(given)
    assert "ALLOW_PACKAGE_CODE is for runs without a window: in QGIS's window it allows nothing" in reason
    assert "press 'Look and allow\u2026' below the model" in reason
    assert "untrusted-code" in reason
    allow_this_time(sha256)
    assert sha256 == build_plan(algorithm(), given, context()).job.allowed_code


@pytest.mark.parametrize(("platform", "is_there"), [("desktop", True), ("qgis_process", False), ("external", False)])
def test_only_qgis_desktop_has_a_window(monkeypatch: pytest.MonkeyPatch, platform: str, is_there: bool) -> None:
    monkeypatch.setattr(QgsApplication, "platform", lambda: platform)
    assert code_consent.has_window() is is_there


@pytest.mark.parametrize("policy", ["deny", "deny, always", "forbid", "no"])
def test_any_word_but_ask_forbids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    settings = tmp_path / "global.ini"
    settings.write_text(f'[kestrel]\ncode_policy="{policy}"\n', encoding="utf-8")
    monkeypatch.setenv("QGIS_GLOBAL_SETTINGS_FILE", str(settings))
    assert Consent.DENIED is consent_to(HASH, [HASH])
    settings.write_text("[kestrel]\ncode_policy=Ask\n", encoding="utf-8")
    assert Consent.GIVEN is consent_to(HASH, [HASH])


@pytest.mark.parametrize(
    "text", ["[Kestrel]\nCode_Policy=deny", "[KESTREL]\nCODE_POLICY=DENY", "[kestrel]\ncode_policy="]
)
def test_a_policy_in_another_case_or_without_a_word_forbids_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (tmp_path / "global.ini").write_text(f"{text}\n")
    monkeypatch.setenv("QGIS_GLOBAL_SETTINGS_FILE", str(tmp_path / "global.ini"))
    assert Consent.DENIED is consent_to(HASH, [HASH])


def own_file_says(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    path = folder / "qgis_global_settings.ini"
    path.write_text(f"[kestrel]\n{text}\n")
    monkeypatch.setattr(code_consent, "_own_global_file", lambda: os.path.realpath(path))


@pytest.mark.parametrize("policy", ["", "code_policy=ask\n", "code_policy=deny\n"])
def test_a_file_that_a_variable_names_does_not_open_what_qgis_own_file_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    administrator_says(tmp_path, monkeypatch, f"{policy}trusted_code_global={HASH}")
    assert Consent.GIVEN is consent_to(HASH)
    own_file_says(tmp_path, monkeypatch, "code_policy=deny")
    assert Consent.DENIED is consent_to(HASH, [HASH])


def test_the_list_in_qgis_own_file_counts_whatever_a_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    administrator_says(tmp_path, monkeypatch, "code_policy=deny")
    own_file_says(tmp_path, monkeypatch, f"trusted_code_global={HASH}")
    assert (Consent.GIVEN, Consent.DENIED) == (consent_to(HASH), consent_to("f" * 64, ["f" * 64]))
