"""A request is read from JSON, forms, calls and files; whatever else comes is refused, and secrets are not repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.inference.errors import JobError
from kestrel.processing_provider.rest_request.text import read_request
from kestrel.processing_provider.rest_request.translate import translate

SMALL = {"inputRaster": {"uri": "/a b+c&d.tif"}, "model": {"uri": "/m%20.dlpk"}, "runNMS": "true"}
CANARY = "c4n4ry-s3cr3t"


def refusal(text: str) -> JobError:
    with pytest.raises(JobError) as caught:
        read_request(text)
    return caught.value


def as_fields(members: dict[str, Any]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in members.items()}


def meaning(text: str) -> Any:
    """What a request says, whatever form it came in."""
    values = translate(read_request(text)).values
    return {**values, "INPUT_SOURCE": json.loads(values["INPUT_SOURCE"])}


FORMS = {
    "json": json.dumps(SMALL),
    "json of json texts": json.dumps(as_fields(SMALL)),
    "form": urlencode(as_fields(SMALL)),
    "query": "?" + urlencode(as_fields(SMALL), quote_via=quote),
    "call": "https://server/GPServer/DetectObjectsUsingDeepLearning/submitJob?" + urlencode(as_fields(SMALL)),
    "form that was not encoded": "&".join(f"{name}={value}" for name, value in as_fields(SMALL).items()),
    "a line each": "\n".join(f"{name}={value}" for name, value in as_fields(SMALL).items()),
    "braces left as they are": urlencode(as_fields(SMALL), safe="{}:,"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_request_says_the_same(form: str) -> None:
    assert meaning(FORMS[form]) == {"INPUT_SOURCE": {"uri": "/a b+c&d.tif"}, "MODEL": "/m%20.dlpk", "RUN_NMS": True}


def test_a_file_may_hold_any_form_and_paths_in_it_begin_at_its_folder(tmp_path: Path) -> None:
    for text in ('{"inputRaster": "a/b.tif", "model": "/m.dlpk"}', "inputRaster=a/b.tif&model=/m.dlpk"):
        path = tmp_path / "request.JSON"
        path.write_text("\ufeff" + text, "utf-8")
        assert meaning(str(path)) == {"INPUT_SOURCE": {"uri": str(tmp_path / "a" / "b.tif")}, "MODEL": "/m.dlpk"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("   \n", "is empty"),
        ("{}", "holds no member"),
        ("[1]", "holds no member"),
        ("12", "holds no member"),
        ("https://server/submitJob", "holds no member"),
        ("/no/such/request.json", "cannot be read: No such file"),
        ('{"model": 1,}', "line 1, column 13"),
        ('{"model": NaN}', "NaN"),
        ('{"model": 1e999}', "1e999"),
        ('{"model": ' + "9" * 400 + "}", "400 digits"),
        ('{"model": 1, "model": 2}', "'model' stands in it twice"),
        ("model=1&model=2", "'model' stands in the request twice"),
        ('{"model": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"model": ' + "[" * 80 + "]" * 80 + "}", "nested too deeply"),
        ('{"model": "' + "x" * (4 * 2**20) + '"}', "larger than 4 MB"),
        ('{"model": "\\ud800"}', "half a character"),
        ("model=%ff", "not encoded in UTF-8"),
    ],
)
def test_what_is_no_request_is_refused_with_the_reason(text: str, said: str) -> None:
    assert said in str(refusal(text))


@pytest.mark.parametrize(
    ("member", "text"),
    [
        ("token", f'{{"token": "{CANARY}"}}'),
        ("token", f"f=json&token={CANARY}"),
        ("Token", f'{{"Token": "{CANARY}"}}'),
        ("inputRaster.serviceToken", f'{{"inputRaster": {{"url": "https://s/x", "serviceToken": "{CANARY}"}}}}'),
        ("context.mask.serviceToken", urlencode({"context": json.dumps({"mask": {"serviceToken": CANARY}})})),
        ("inputRaster.url", f'{{"inputRaster": {{"url": "https://s/ImageServer?token={CANARY}"}}}}'),
        ("inputRaster", f'{{"inputRaster": "https://s/ImageServer?f=json&token={CANARY}"}}'),
        ("model.url", f'{{"model": {{"url": "https://user:{CANARY}@s/items/1"}}}}'),
        ("model.password", f'{{"model": "{{\\"password\\": \\"{CANARY}\\"}}"}}'),
    ],
)
def test_a_secret_is_refused_by_its_member_and_not_repeated(member: str, text: str) -> None:
    error = refusal(text)
    assert f"'{member}'" in error.message
    assert "AUTHENTICATION" in error.hint
    assert CANARY not in f"{error} {error.context}"


def test_an_empty_token_is_no_secret() -> None:
    assert meaning(json.dumps({**SMALL, "token": ""})) == meaning(FORMS["json"])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def read_or_refused(text: str) -> None:
    try:
        translate(read_request(text))
    except JobError as error:
        assert error.message.endswith(".")


@settings(deadline=None)
@given(JSON)
def test_any_json_is_read_or_refused(value: Any) -> None:
    read_or_refused(json.dumps(value))


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    read_or_refused(text)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["inputRaster", "model", "context", "runNMS", "f"]), st.text(max_size=30)))
def test_any_form_is_read_or_refused(members: dict[str, str]) -> None:
    read_or_refused(urlencode(members, errors="surrogatepass"))
    read_or_refused("&".join(f"{name}={value}" for name, value in members.items()))
