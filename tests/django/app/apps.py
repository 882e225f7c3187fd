from django.apps import AppConfig


class TestsConfig(AppConfig):
    name = "tests.django.app"
    label = "app"
