from django.contrib import admin

from example_project.shop.models import Airport, Country, Photo


@admin.register(Photo)
class PhotoAdmin(admin.ModelAdmin):
    list_display = ["title", "author", "licence", "price", "problem"]


@admin.register(Country)
class CountryAdmin(admin.ModelAdmin):
    list_display = ["code", "longest_flight"]


@admin.register(Airport)
class AirportAdmin(admin.ModelAdmin):
    list_display = ["iata", "name", "city", "country", "freight"]
    list_filter = ["country"]
    search_fields = ["iata", "name", "city"]
