"""The app: reads the settings, without any I/O, and finds the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from django.apps import AppConfig
from django.core.signals import setting_changed
from django.utils.module_loading import autodiscover_modules

from asynctasq import _current, _runtime, drivers
from asynctasq.errors import ConfigurationError
from asynctasq.tasks import BaseTask, process


class AsyncTasQConfig(AppConfig):
    name = "asynctasq_django"
    verbose_name = "AsyncTasQ"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from asynctasq_django import arguments, checks, conf, db
        from asynctasq_django.dispatch import DjangoDispatcher

        checks.install()
        arguments.install()
        db.install()
        drivers.locate = conf.located
        _runtime.use_dispatcher(DjangoDispatcher)
        if "asynctasq_django.apps:setup" not in process.initializers:
            process.initializers.append("asynctasq_django.apps:setup")
        setting_changed.connect(_changed, dispatch_uid="asynctasq_django")
        configure()
        autodiscover_modules("tasks")


def configure() -> None:
    """Apply the settings. What is wrong with them is kept for the checks, and raised by the first dispatch."""
    from asynctasq_django import conf

    try:
        conf.current, conf.problem = conf.read(), None
        _runtime.init(conf.current.core, conf.current.emitters())
    except ConfigurationError as exc:
        conf.problem = exc
        _runtime.shutdown()
        _current.set_runtime(_Misconfigured(exc))


def _changed(*, setting: str, **kwargs: Any) -> None:
    """A test overrides the settings."""
    if setting == "ASYNCTASQ":
        configure()


def setup() -> None:
    """Run first in each child process of process tasks."""
    import django

    django.setup()


class _Misconfigured:
    """Stands where the runtime would: whoever dispatches is told what is wrong with the settings."""

    def __init__(self, problem: ConfigurationError) -> None:
        self.problem = problem

    async def dispatch(self, tasks: Sequence[BaseTask[Any]]) -> NoReturn:
        raise ConfigurationError(f"ASYNCTASQ: {self.problem}")

    def dispatch_sync(self, tasks: Sequence[BaseTask[Any]]) -> NoReturn:
        raise ConfigurationError(f"ASYNCTASQ: {self.problem}")
