"""MODEL given as a portal's item: found by its words, downloaded in the run's own thread."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from ..inference.errors import ModelPackageError
from ..inference.net.http import make_client
from ..inference.net.item_files import ItemFile, Progress, model_of
from ..inference.net.limits import FIRST_CONTACT
from ..inference.net.portal import Reference, references
from ..inference.secrets import Secrets

_MEMBERS = {"itemId", "url", "uri"}


def named_model(text: str, portal: str = "") -> Reference | None:
    """Tell what a model is whose text is an address, or JSON with itemId, url or uri; None where it is neither.

    Args:
        text: The parameter MODEL.
        portal: Where items are that name none.

    Raises:
        JobError: it names nothing.
        ModelPackageError: it is the address of something else than a portal's item.
        CredentialError, ServiceError: the address holds a secret, or is none.
    """
    if re.match(r"https?://", text, re.IGNORECASE):
        found = references({"url": text}, portal)[0]
    else:
        content = _json(text)
        if not content or not set(content) <= _MEMBERS:
            return None
        found = references(content, portal)[0]
    if found.kind == "url":
        raise ModelPackageError(
            f"The model '{found.value.split('?')[0]}' is not the address of a portal's item.",
            hint="Give the address of the item's page, its id as JSON, or download the file and give its path.",
        )
    return found


def _json(text: str) -> dict[str, object]:
    if not text.startswith("{"):
        return {}
    try:
        content = json.loads(text)
    except ValueError:
        return {}  # whoever reads definitions says what is wrong with it
    return content if isinstance(content, dict) else {}


def fetched_model(
    reference: Reference, secrets: Secrets, is_cancelled: Callable[[], bool], progress: Progress
) -> ItemFile:
    """Download an item's model, or take it from the cache.

    Raises:
        JobError: the item is no model.
        NetworkError, ServiceError, CredentialError: the portal cannot be asked, or says no.
        OutputError, DiskFullError: the cache cannot be written.
        Canceled: is_cancelled said so.
    """
    client = make_client(secrets, limits=FIRST_CONTACT, is_cancelled=is_cancelled)
    try:
        return model_of(client, reference, progress)
    finally:
        client.close()
