"""The shop's background work: one task of each kind."""

import functools

import httpx
from django.conf import settings
from django.db import connection, transaction
from PIL import Image

from asynctasq import AsyncProcessTask, SyncProcessTask, task
from example_project.shop import geography
from example_project.shop.models import Airport, Country, Photo


@task
def import_country(code: str) -> int:
    """Bring the airports of a country up to date; the number of them. Sync, so it runs in a thread: the place for
    the ORM.

    What is to follow is dispatched in the transaction that writes the rows: either both are there or neither is.
    """
    known = geography.airports_by_country()[code]
    with transaction.atomic():
        country, _ = Country.objects.get_or_create(code=code)
        airports = [
            Airport(
                iata=each["iata"],
                name=each["name"],
                city=each["city"],
                country=country,
                latitude=each["lat"],
                longitude=each["lon"],
                elevation=int(each["elevation"]),
            )
            for each in known
        ]
        # Run again after a crash, the task finds its rows and writes the same.
        fields = ["name", "city", "country", "latitude", "longitude", "elevation"]
        # MySQL is not told which unique field may be in conflict.
        unique = ["iata"] if connection.features.supports_update_conflicts_with_target else None
        Airport.objects.bulk_create(airports, update_conflicts=True, unique_fields=unique, update_fields=fields)
        if hub := geography.hub(known):
            quote_freight(Airport.objects.get(iata=hub["iata"])).dispatch_sync()
        if len(airports) > 1:
            LongestFlight(country).dispatch_sync()
    return len(airports)


@functools.cache
def http_client() -> httpx.AsyncClient:
    """One for all tasks of a worker, so that they share its connections. No proxy: the site is on the loopback."""
    return httpx.AsyncClient(base_url=settings.SITE_URL, timeout=10, trust_env=False)


@task(max_attempts=5, timeout=30)
async def quote_freight(airport: Airport) -> float:
    """Ask over HTTP what sending a print to an airport costs, and note it. Async: it mostly waits.

    The first answer for some airports is 503; raising is all it takes to be run again.
    """
    response = await http_client().get(f"/api/freight/{airport.iata}")
    response.raise_for_status()
    airport.freight = response.json()["price"]
    await airport.asave(update_fields=["freight"])
    return airport.freight


class LongestFlight(AsyncProcessTask[float]):
    """Find the two airports of a country farthest from each other. In a process of its own: it keeps a CPU busy."""

    country: Country
    timeout = 60

    async def execute(self) -> float:
        places = [
            geography.vector(latitude, longitude)
            async for latitude, longitude in self.country.airports.values_list("latitude", "longitude")
        ]
        self.country.longest_flight = geography.longest_distance(places)
        await self.country.asave(update_fields=["longest_flight"])
        return self.country.longest_flight


class DamagedPhoto(Exception):
    """The file is no complete image: another attempt would not help."""


class Thumbnail(SyncProcessTask[str]):
    """Make a small version of a photograph. In a process too."""

    photo: Photo
    width: int = 160
    timeout = 60

    def execute(self) -> str:
        with Image.open(settings.PHOTOGRAPHS / self.photo.file) as image:
            try:
                image.load()
            except OSError as error:
                raise DamagedPhoto(f"{self.photo.file}: {error}") from error
            image.thumbnail((self.width, self.width))
            target = settings.MEDIA_ROOT / self.photo.thumbnail(self.width)
            target.parent.mkdir(parents=True, exist_ok=True)
            image.save(target, "JPEG")
        return str(target)

    def should_retry(self, exception: BaseException) -> bool:
        return not isinstance(exception, DamagedPhoto)

    def failed(self, exception: BaseException) -> None:
        Photo.objects.filter(pk=self.photo.pk).update(problem=str(exception))
