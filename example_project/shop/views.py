"""The shop's page, its HTTP interface, and its files."""

import mimetypes
from pathlib import Path

from django.conf import settings
from django.contrib.staticfiles import finders
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import aget_object_or_404, get_object_or_404, redirect, render
from django.utils._os import safe_join
from django.views.decorators.http import require_POST

import asynctasq
from asynctasq.drivers.base import TaskInfo
from example_project.shop.geography import distance, vector
from example_project.shop.models import Airport, Country, Photo
from example_project.shop.tasks import Thumbnail

WAREHOUSE = vector(52.31, 4.76)
"""Amsterdam Schiphol."""
HIGH_AIRFIELD = 2000
"""Feet; above that the carrier looks its tariff up first."""

looked_up: set[str] = set()
"""High airfields that were asked for since the site was started."""


async def index(request: HttpRequest) -> HttpResponse:
    """Photographs with what became of the last task asked for, and what sending costs."""
    photos = [photo async for photo in Photo.objects.all()]
    states: dict[str, TaskInfo] = {}
    if ids := [photo.task_id for photo in photos if photo.task_id]:
        states = {info.id: info for info in await asynctasq.repository().get(ids)}
    rows = [(photo, states.get(photo.task_id)) for photo in photos]
    hubs = [airport async for airport in Airport.objects.exclude(freight=None).order_by("freight")]
    longest = Country.objects.exclude(longest_flight=None).order_by("-longest_flight")[:10]
    context = {
        "photos": rows,
        "hubs": hubs,
        "longest": [country async for country in longest],
        "busy": any(info and info.status in ("pending", "scheduled", "processing") for _, info in rows),
    }
    return render(request, "shop/index.html", context)


@require_POST
def make_thumbnail(request: HttpRequest, slug: str) -> HttpResponse:
    """Dispatch a task and remember its id, both or neither."""
    with transaction.atomic():
        photo = get_object_or_404(Photo, pk=slug)
        photo.task_id = Thumbnail(photo).dispatch_sync()
        photo.save(update_fields=["task_id"])
    return redirect("index")


async def freight(request: HttpRequest, iata: str) -> JsonResponse:
    """What sending a print to an airport costs."""
    airport = await aget_object_or_404(Airport, pk=iata)
    if airport.elevation > HIGH_AIRFIELD and iata not in looked_up:
        looked_up.add(iata)
        return JsonResponse({"error": "its tariff is being looked up, ask again"}, status=503)
    kilometres = distance(WAREHOUSE, vector(airport.latitude, airport.longitude))
    return JsonResponse({"kilometres": round(kilometres), "price": round(4 + kilometres * 0.004, 2)})


def thumbnail(request: HttpRequest, path: str) -> HttpResponse:
    return file(Path(safe_join(settings.MEDIA_ROOT, path)))


def static(request: HttpRequest, path: str) -> HttpResponse:
    """Style sheets and scripts of the admin; a real site has a web server for them."""
    return file(Path(str(finders.find(path))))


def file(path: Path) -> HttpResponse:
    if not path.is_file():
        raise Http404
    return HttpResponse(path.read_bytes(), content_type=mimetypes.guess_type(path.name)[0])
