"""OUTPUT_SERVICE: the objects of a run into a feature service of ArcGIS, after everything else is written.

What was sent stands in a ledger in the job's folder, which is kept until all is there: the same run, started again,
publishes only the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qgis.core import QgsGeometry, QgsProcessingFeedback, QgsRectangle

from ...inference.errors import InferenceError
from ...inference.net.feature_service import ServiceLayer, check_editable, open_service
from ...inference.net.hosted_service import (
    NewService,
    create_service,
    define_layer,
    describe_item,
    feature_url,
    signed_in_user,
)
from ...inference.net.http import HttpClient, make_client
from ...inference.net.ledger import Ledger
from ...inference.net.limits import FIRST_CONTACT, HttpLimits
from ...inference.net.portal import let_in
from ...inference.net.publishing import Publication, Publisher
from ...inference.secrets import Secrets
from ..feature_sink import RunFacts, columns
from ..text import to_plain, tr
from .append import text_lengths
from .esri_features import (
    as_extent,
    as_spatial_reference,
    check_service_geometry,
    crs_of,
    esri_features,
    esri_name,
    layer_definition,
    target_fields,
)
from .service_request import ServiceRequest
from .summary import Written
from .target_fields import match_columns

LIMITS = HttpLimits()
"""Of requests after the run."""
PATIENCE = 600.0
"""Seconds for one chunk of objects, with all its tries."""

_MARK = "Kestrel run {job_id}"


@dataclass(frozen=True)
class ServiceTarget:
    """A feature service that gets the objects, and what signs in to it.

    Attributes:
        request: Which service.
        portal: Address of the portal.
        secrets: What signs in.
    """

    request: ServiceRequest
    portal: str
    secrets: Secrets

    def client(self, feedback: QgsProcessingFeedback, *, is_first: bool = False) -> HttpClient:
        """Give what asks the servers; the first time somebody is waiting in front of the screen."""

        def waiting(reason: str, seconds: float) -> None:
            feedback.pushInfo(tr("{reason} Trying again in {count} s.").format(reason=reason, count=round(seconds, 1)))

        return make_client(
            self.secrets,
            limits=FIRST_CONTACT if is_first else LIMITS,
            is_cancelled=feedback.isCanceled,
            on_wait=waiting,
        )


def check_service(target: ServiceTarget, facts: RunFacts, feedback: QgsProcessingFeedback) -> None:
    """Ask the service, before the run, whether it is going to take the objects.

    Args:
        target: The service.
        facts: What is known of the objects before the run.
        feedback: Asked whether to stop.

    Raises:
        InferenceError: it is not there, does not let the user in, or its fields do not fit.
    """
    client = target.client(feedback, is_first=True)
    try:
        if target.request.name:
            signed_in_user(client, target.portal)
            return
        layer = _open(client, target)
        if layer is not None:
            _places(layer, facts, target.request)
            crs_of(layer)
    finally:
        client.close()


def publish(
    target: ServiceTarget,
    folder: Path,
    files: Sequence[Path],
    facts: RunFacts,
    extent: QgsRectangle,
    count: int,
    feedback: QgsProcessingFeedback,
) -> Written:
    """Bring the objects into the service.

    Args:
        target: The service.
        folder: The job's folder, which keeps the ledger.
        files: Files of objects.
        facts: What they have in common.
        extent: Of the raster, in its coordinate reference system.
        count: How many they are.
        feedback: Told what is done; asked whether to stop.

    Raises:
        InferenceError: not all are there; the same run goes on.
        Canceled: the user wants it to stop; the same run goes on.
    """
    client = target.client(feedback)
    try:
        layer = _open_or_create(client, target, folder, facts, extent)
        places = _places(layer, facts, target.request)
        check_service_geometry(layer, facts.geometry)
        placed = replace(facts, placement=replace(facts.placement, target=crs_of(layer)))

        def progress(done: int) -> None:
            feedback.setProgressText(tr("Published {count} of {total}").format(count=done, total=count))

        what = Publication(facts.job_id, places["JobId"], count)
        Publisher(
            client,
            layer,
            Ledger(folder, layer.url),
            what,
            is_cancelled=feedback.isCanceled,
            progress=progress,
            patience=PATIENCE,
        ).publish(lambda: esri_features(files, placed, places, layer))
    finally:
        client.close()
    text = tr("{count} objects are in the feature service {url}.")
    feedback.pushInfo(text.format(count=count, url=to_plain(layer.url)))
    left_out = [column.name for column in columns(facts.fields, facts.extra) if column.name not in places]
    if left_out:
        told = tr("The feature layer {name} got no values of: {fields}.")
        feedback.pushWarning(told.format(name=to_plain(layer.name), fields=to_plain(", ".join(left_out))))
    is_hosted = bool(target.request.name or target.request.item_id)
    url = layer.service_url if is_hosted else layer.url
    return Written("service", url, count, {"itemId": layer.item_id, "layer": layer.url})


def _open(client: HttpClient, target: ServiceTarget) -> ServiceLayer | None:
    request = target.request
    if request.url:
        let_in(client, target.portal, request.url)
    url = request.url or feature_url(client, target.portal, request.item_id)
    layer = open_service(client, url, request.item_id)
    if layer is not None:
        check_editable(layer)
    return layer


def _open_or_create(
    client: HttpClient, target: ServiceTarget, folder: Path, facts: RunFacts, extent: QgsRectangle
) -> ServiceLayer:
    """Give the layer; a service that is to be made is made once, whatever becomes of the answers."""
    if not target.request.name:
        layer = _open(client, target)
        if layer is not None:
            return layer
        url = target.request.url or feature_url(client, target.portal, target.request.item_id)
        return _defined(client, url, target.request.item_id, url.rsplit("/", 2)[-2], facts, extent)
    request = target.request
    ledger = Ledger(folder, json.dumps({**asdict(request), "portal": target.portal}, sort_keys=True))
    place = ledger.place
    if place is None:
        user = signed_in_user(client, target.portal)
        mark = _MARK.format(job_id=facts.job_id)
        new = NewService(request.name, mark, request.folder_id, as_spatial_reference(facts.placement.crs))
        place = create_service(client, target.portal, user, new)
        if request.item:
            describe_item(client, target.portal, user, request.folder_id, place[0], request.item)
        ledger.note_place(*place)
    else:
        feature_url(client, target.portal, place[0])  # lets the portal's sign-in go there
    item_id, url = place
    return open_service(client, url, item_id) or _defined(client, url, item_id, request.name, facts, extent)


def _defined(
    client: HttpClient, url: str, item_id: str, name: str, facts: RunFacts, extent: QgsRectangle
) -> ServiceLayer:
    shape = QgsGeometry.fromRect(extent)
    facts.placement.mover()(shape)
    definition = layer_definition(name, facts.definition, facts, as_extent(facts.placement.crs, shape))
    define_layer(client, url, definition)
    layer = open_service(client, url, item_id)
    if layer is None:
        raise InferenceError(
            f"The new feature service '{url}' has no layer.", hint="Start the same run again: what was found is kept."
        )
    return layer


def _places(layer: ServiceLayer, facts: RunFacts, request: ServiceRequest) -> dict[str, str]:
    """Give the layer's field for each column; ArcGIS's form of a name counts where the name is missing."""
    table, fields = columns(facts.fields, facts.extra), target_fields(layer)
    known = {item.name.casefold() for item in fields}
    field_map = dict(request.field_map)
    for column in table:
        plain = esri_name(column.name)
        if column.name.casefold() not in known and plain.casefold() in known:
            field_map.setdefault(column.name.casefold(), plain)
    lengths = text_lengths(facts.fields, facts.definition, len(facts.job_id))
    return match_columns(table, [item.name for item in facts.extra], fields, field_map, lengths, layer.name)
