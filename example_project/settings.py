"""Settings of the example. For development on the loopback only."""

import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

BASE_DIR = Path(__file__).resolve().parent
VAR_DIR = BASE_DIR / "var"
"""Everything the example writes."""
VAR_DIR.mkdir(exist_ok=True)

NAME = os.environ.get("EXAMPLE_NAME", "asynctasq_example")
"""Its queue, and its database where a server holds it."""

# The queue lives where ASYNCTASQ_DRIVER says. On a database, tasks and shop share it, so a task is dispatched in the
# same transaction as the rows it is about; with Redis the shop stays on SQLite and tasks are sent on commit.
DRIVER = os.environ.get("ASYNCTASQ_DRIVER", "sqlite")

SERVERS = {
    "postgres": ("postgresql", "ASYNCTASQ_POSTGRES_DSN", "postgresql://test:test@127.0.0.1:5432/test_db"),
    "mysql": ("mysql", "ASYNCTASQ_MYSQL_DSN", "mysql://test:test@127.0.0.1:3306/test_db"),
}

if DRIVER in SERVERS:
    backend, variable, address = SERVERS[DRIVER]
    server = urlsplit(os.environ.get(variable, address))
    FIRST_DATABASE = server.path.lstrip("/")  # to log in to, while the example's own is not there yet
    DATABASES: dict[str, dict[str, Any]] = {
        "default": {
            "ENGINE": f"django.db.backends.{backend}",
            # On MySQL the user of the tests may make databases whose names begin so.
            "NAME": f"test_{NAME}" if DRIVER == "mysql" else NAME,
            "USER": unquote(server.username or ""),
            "PASSWORD": unquote(server.password or ""),
            "HOST": server.hostname or "",
            "PORT": server.port or "",
        }
    }
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": VAR_DIR / "example.sqlite3",
            # A transaction takes its place in the line of writers when it begins, and waits there.
            "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
        }
    }

ASYNCTASQ = {
    "driver": DRIVER,
    "default_queue": NAME,
    "keep_completed_tasks": True,  # so that the site can show what became of a task
    "default_retry_delay": 0.5,
    "default_retry_strategy": "fixed",
}
if DRIVER != "redis":
    ASYNCTASQ["database"] = "default"

TIME_ZONE = "UTC"
SITE_URL = os.environ.get("EXAMPLE_SITE_URL", "http://127.0.0.1:8000")
"""Where the tasks find the site's own HTTP interface."""
PHOTOGRAPHS = BASE_DIR / "photographs"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "asynctasq_django",
    "example_project.shop",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]

SECRET_KEY = "for development only: whoever deploys this sets another"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "example_project.urls"
ASGI_APPLICATION = "example_project.asgi.application"
STATIC_URL = "/static/"
MEDIA_URL = "/thumbnails/"
MEDIA_ROOT = VAR_DIR / "thumbnails"
