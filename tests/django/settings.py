"""A Django project for the tests. The environment says what differs from run to run, so that a subprocess can be given
other settings:

ASYNCTASQ_TEST_DATABASE   sqlite, postgres or mysql: what ``default`` is
ASYNCTASQ_TEST_NAME       its name, for a sqlite database its file
ASYNCTASQ_TEST_OPTIONS    what else its entry in DATABASES holds, as JSON
ASYNCTASQ_TEST_SETTINGS   the setting ASYNCTASQ, as JSON
ASYNCTASQ_TEST_ROUTER     the dotted path of a router
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

VARIABLES = {
    "postgres": ("ASYNCTASQ_POSTGRES_DSN", "postgresql://test:test@127.0.0.1:5432/test_db"),
    "mysql": ("ASYNCTASQ_MYSQL_DSN", "mysql://test:test@127.0.0.1:3306/test_db"),
}
ENGINES = {
    "sqlite": "django.db.backends.sqlite3",
    "postgres": "django.db.backends.postgresql",
    "mysql": "django.db.backends.mysql",
}
SCRATCH = Path(tempfile.gettempdir())
UNIQUE = f"asynctasq_django_{os.getpid()}"
"""Runs side by side share the servers, so each names its databases after itself."""


def database(kind: str, name: str | None = None) -> dict[str, Any]:
    """The entry of DATABASES for a database on the service that the environment names."""
    entry: dict[str, Any] = {"ENGINE": ENGINES[kind], "NAME": name or str(SCRATCH / f"{UNIQUE}.sqlite3")}
    if kind == "sqlite":
        # A file, because the driver opens it too; and a transaction that waits where it begins.
        entry["OPTIONS"] = {"transaction_mode": "IMMEDIATE", "timeout": 20}
        entry["TEST"] = {"NAME": str(SCRATCH / f"test_{UNIQUE}.sqlite3")}
        return entry
    variable, default = VARIABLES[kind]
    server = urlsplit(os.environ.get(variable, default))
    return entry | {
        "NAME": name or server.path.lstrip("/"),
        "USER": unquote(server.username or ""),
        "PASSWORD": unquote(server.password or ""),
        "HOST": server.hostname or "",
        "PORT": server.port or "",
        "TEST": {"NAME": f"test_{UNIQUE}"},
    }


DATABASES = {
    "default": database(os.environ.get("ASYNCTASQ_TEST_DATABASE", "sqlite"), os.environ.get("ASYNCTASQ_TEST_NAME")),
    "postgres": database("postgres"),
    "mysql": database("mysql"),
}
DATABASES["default"].update(json.loads(os.environ.get("ASYNCTASQ_TEST_OPTIONS", "{}")))
for alias in ("postgres", "mysql"):
    if DATABASES["default"]["ENGINE"] == DATABASES[alias]["ENGINE"]:
        DATABASES[alias]["TEST"] = {"NAME": f"test_{UNIQUE}_2"}
DATABASE_ROUTERS = [os.environ["ASYNCTASQ_TEST_ROUTER"]] if "ASYNCTASQ_TEST_ROUTER" in os.environ else []

ASYNCTASQ = json.loads(os.environ.get("ASYNCTASQ_TEST_SETTINGS", '{"driver": "redis", "redis_db": 5}'))

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "asynctasq_django",
    "tests.django.app",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
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
ROOT_URLCONF = "tests.django.urls"
SECRET_KEY = "tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TIME_ZONE = "UTC"
USE_TZ = True
STATIC_URL = "/static/"
