from django.contrib import admin
from django.urls import path

from example_project.shop import views

urlpatterns = [
    path("", views.index, name="index"),
    path("print/<slug:slug>/", views.make_thumbnail, name="make_thumbnail"),
    path("api/freight/<str:iata>", views.freight, name="freight"),
    path("thumbnails/<path:path>", views.thumbnail),
    path("static/<path:path>", views.static),
    path("admin/", admin.site.urls),
]
