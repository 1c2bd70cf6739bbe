"""Hosted feature layers of an ArcGIS portal: who is signed in, an item's service, and a new one.

Source: Esri's REST documentation, "Portal Self", "Item", "Create Service", "Add to Definition (Feature Service)".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import CredentialError, NetworkError, OutputError, ServiceError
from .feature_service import layer_numbers
from .http import HttpClient
from .portal import portal_url, read_item, service_of

_MOST_FOUND = 100


@dataclass(frozen=True)
class NewService:
    """A hosted feature layer that is to be made.

    Attributes:
        name: Of the service.
        mark: A text that no other service has; it tells whether a request whose answer was lost has been done.
        folder_id: Folder of the user's content; empty: the root.
        spatial_reference: Of the layer, in Esri's form.
        item: Texts of the item: title, tags, ...
    """

    name: str
    mark: str
    folder_id: str
    spatial_reference: Mapping[str, Any]
    item: Mapping[str, str] = field(default_factory=dict)


def signed_in_user(client: HttpClient, portal: str) -> str:
    """Give the name of the user that the requests are signed by.

    Raises:
        CredentialError: nobody is signed in.
    """
    user = client.get_json(f"{_rest(portal)}/portals/self").get("user")
    name = user.get("username") if isinstance(user, dict) else None
    if not isinstance(name, str) or not name:
        raise CredentialError(
            f"Nobody is signed in to the portal '{portal}'.",
            hint="Choose an authentication configuration in AUTHENTICATION, and check that PORTAL is its portal.",
        )
    return name


def feature_url(client: HttpClient, portal: str, item_id: str) -> str:
    """Give the address of the feature service that an item stands for; the portal's sign-in may go there then.

    Raises:
        ServiceError: the item is something else.
    """
    item = read_item(client, portal, item_id)
    if item.type != "Feature Service":
        raise ServiceError(
            f"The item {item.shown} is of the type '{item.type}', not a feature service.",
            hint="Give the item of a feature layer.",
        )
    return service_of(client, item).rstrip("/")


def create_service(client: HttpClient, portal: str, user: str, new: NewService) -> tuple[str, str]:
    """Make an empty hosted feature service, once; give its item's id and its address.

    A request whose answer got lost is not sent again before the user's content was searched for the service.

    Raises:
        OutputError: there is a service of that name, which is not this run's.
        NetworkError, ServiceError, CredentialError: see HttpClient.
    """
    found = find_service(client, portal, user, new)
    if found is not None:
        return found
    folder = f"/{new.folder_id}" if new.folder_id else ""
    parameters = {
        "name": new.name,
        "serviceDescription": new.mark,
        "hasStaticData": False,
        "maxRecordCount": 2000,
        "supportedQueryFormats": "JSON",
        "capabilities": "Create,Delete,Query,Update,Editing,Sync",
        "allowGeometryUpdates": True,
        "spatialReference": dict(new.spatial_reference),
    }
    form = {"createParameters": json.dumps(parameters), "targetType": "featureService"}
    try:
        reply = client.get_json(
            f"{_rest(portal)}/content/users/{user}{folder}/createService", form, post=True, tries=False
        )
    except (NetworkError, ServiceError) as error:
        found = find_service(client, portal, user, new)
        if found is None:
            raise _name_taken(error, new.name) from error
        return found
    item_id = reply.get("itemId") or reply.get("serviceItemId")
    if not isinstance(item_id, str):
        raise ServiceError(f"The portal '{portal}' does not say which item the new service '{new.name}' is.")
    return item_id, feature_url(client, portal, item_id)


def find_service(client: HttpClient, portal: str, user: str, new: NewService) -> tuple[str, str] | None:
    """Give item id and address of the service that this run has made already, or None."""
    folder = f"/{new.folder_id}" if new.folder_id else ""
    content = client.get_json(f"{_rest(portal)}/content/users/{user}{folder}", {"num": _MOST_FOUND})
    items = content.get("items")
    for item in items if isinstance(items, list) else []:
        is_like = item.get("type") == "Feature Service" and new.name in (item.get("title"), item.get("name"))
        if is_like:
            url = feature_url(client, portal, str(item.get("id")))
            if client.get_json(url).get("serviceDescription") == new.mark:
                return str(item.get("id")), url
    return None


def describe_item(
    client: HttpClient, portal: str, user: str, folder_id: str, item_id: str, texts: Mapping[str, str]
) -> None:
    """Give an item its title, tags and other texts."""
    folder = f"/{folder_id}" if folder_id else ""
    client.get_json(f"{_rest(portal)}/content/users/{user}{folder}/items/{item_id}/update", dict(texts), post=True)


def define_layer(client: HttpClient, service_url: str, definition: Mapping[str, Any]) -> None:
    """Give an empty service its layer, once.

    Raises:
        NetworkError, ServiceError, CredentialError: see HttpClient.
    """
    admin = service_url.replace("/rest/services/", "/rest/admin/services/")
    form = {"addToDefinition": json.dumps({"layers": [definition]})}
    try:
        client.get_json(f"{admin}/addToDefinition", form, post=True, tries=False)
    except (NetworkError, ServiceError):
        if not layer_numbers(client, service_url):
            raise


def _rest(portal: str) -> str:
    return f"{portal_url(portal)}/sharing/rest"


def _name_taken(error: NetworkError | ServiceError, name: str) -> Exception:
    if isinstance(error, ServiceError) and "already exists" in error.message:
        return OutputError(
            f"There is a service named '{name}' already.",
            hint="Choose another name, or give its itemId to add to it. Then start the same run again: what was found "
            "is kept.",
        )
    return error
