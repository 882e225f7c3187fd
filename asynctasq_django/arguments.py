"""Model instances as arguments: they travel as a reference and arrive fresh from the database."""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import DataError, models
from django.utils.connection import ConnectionDoesNotExist
from django.utils.functional import LazyObject, empty
from django.utils.safestring import SafeString

from asynctasq.core.codec import register_type
from asynctasq.errors import DecodeError, EncodeError


class ModelGone(DecodeError):
    """The row that an argument refers to is not there any more. The task goes to the dead letters without a retry."""


def install() -> None:
    """Let model instances travel, and say of query sets why they do not.

    So does what Django puts around plain values: ``request.user`` arrives as the user, a rendered template as the
    safe string it was.
    """
    register_type(models.Model, _reference, _fetch, name="django.model", blocking=True)
    register_type(models.QuerySet, _refuse, list, name="django.queryset")
    register_type(LazyObject, _unwrapped, lambda value: value, name="django.lazy")
    # Not str(), which leaves a safe string as it is.
    register_type(SafeString, str.__str__, SafeString, name="django.safe")


def _reference(instance: models.Model) -> list[Any]:
    if instance._state.adding or instance.pk is None:
        raise EncodeError(f"an unsaved {instance._meta.label}: save it first, for it travels as its primary key")
    meta = instance._meta
    return [meta.app_label, meta.model_name, instance.pk, instance._state.db or "default"]


def _fetch(reference: Any) -> models.Model:
    """Only models of installed apps can be referred to; nothing is imported."""
    match reference:
        case [str() as app, str() as name, pk, str() as alias]:
            try:
                model = apps.get_model(app, name)
                found: models.Model = model._base_manager.using(alias).get(pk=pk)
                return found
            except models.ObjectDoesNotExist:
                raise ModelGone(f"{app}.{name} with primary key {str(pk)[:100]!r} is gone") from None
            except (LookupError, ConnectionDoesNotExist) as exc:
                raise DecodeError(f"a reference to a model that is not there: {exc}") from None
            except (ValidationError, DataError) as exc:
                raise DecodeError(f"{app}.{name} has no such primary keys: {str(exc)[:200]}") from None
    raise DecodeError("a malformed reference to a model")


def _unwrapped(lazy: Any) -> Any:
    if lazy._wrapped is empty:
        lazy._setup()
    return lazy._wrapped


def _refuse(queryset: Any) -> Any:
    raise EncodeError("a query set, which would be another one on arrival; send its primary keys, or list() of it")
