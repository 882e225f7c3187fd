"""Fills the shop: the photographs in its folder and the countries it sends prints to."""

import csv
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings
from django.db import transaction

from asynctasq import dispatch_many_sync
from example_project.shop.geography import airports_by_country
from example_project.shop.models import Photo
from example_project.shop.tasks import Thumbnail, import_country

WIDTHS = (160, 320, 640)
"""Of the thumbnails, in pixels."""


def photographs() -> Iterator[Photo]:
    """Those that the folder lists."""
    with (settings.PHOTOGRAPHS / "photographs.csv").open(encoding="utf-8") as listing:
        for row in csv.DictReader(listing):
            yield Photo(slug=Path(row["file"]).stem, **row)


def load_photographs() -> int:
    """Put them into the shop and have their thumbnails made; the number of tasks that takes."""
    photos = list(photographs())
    with transaction.atomic():
        for photo in photos:
            photo.save()
        return len(dispatch_many_sync([Thumbnail(photo, width) for photo in photos for width in WIDTHS]))


def load_countries() -> int:
    """Have the airports of every country imported; the number of tasks, which dispatch more."""
    return len(dispatch_many_sync([import_country(code) for code in sorted(airports_by_country())]))
