"""What the shop knows: photographs to print, and the airports it sends prints to."""

from django.conf import settings
from django.db import models


class Photo(models.Model):
    """A photograph of which prints are sold."""

    slug = models.SlugField(primary_key=True)
    file = models.CharField(max_length=100, help_text="Name in the folder of photographs.")
    title = models.CharField(max_length=100)
    author = models.CharField(max_length=100)
    licence = models.CharField(max_length=50)
    price = models.DecimalField(max_digits=6, decimal_places=2)
    problem = models.TextField(blank=True, help_text="Why no prints can be made of it.")
    task_id = models.CharField(max_length=64, blank=True, help_text="The last task that someone asked for.")

    class Meta:
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.title

    def thumbnail(self, width: int = 160) -> str:
        """Name of its thumbnail, relative to MEDIA_ROOT."""
        return f"{self.slug}-{width}.jpg"

    @property
    def thumbnail_url(self) -> str:
        return "" if self.problem else f"{settings.MEDIA_URL}{self.thumbnail()}"


class Country(models.Model):
    """A country with at least one airport."""

    code = models.CharField(max_length=2, primary_key=True, help_text="ISO 3166-1.")
    longest_flight = models.FloatField(null=True, help_text="Between any two of its airports, in kilometres.")

    class Meta:
        ordering = ["code"]
        verbose_name_plural = "countries"

    def __str__(self) -> str:
        return self.code


class Airport(models.Model):
    """An airport with an IATA code."""

    iata = models.CharField(max_length=3, primary_key=True)
    name = models.CharField(max_length=100)
    city = models.CharField(max_length=100)
    country = models.ForeignKey(Country, models.CASCADE, related_name="airports")
    latitude = models.FloatField(help_text="Degrees.")
    longitude = models.FloatField(help_text="Degrees.")
    elevation = models.IntegerField(help_text="Feet above the sea.")
    freight = models.DecimalField(
        max_digits=6, decimal_places=2, null=True, blank=True, help_text="What sending a print there costs."
    )

    class Meta:
        ordering = ["iata"]

    def __str__(self) -> str:
        return f"{self.iata} {self.name}"
