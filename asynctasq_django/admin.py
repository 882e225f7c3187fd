"""The admin's lists of tasks and dead letters: read-only, read through the Repository whatever the broker."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db import models
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

import asynctasq
from asynctasq import _sync
from asynctasq.core import registry
from asynctasq.core.display import describe_arguments
from asynctasq.core.message import STATUSES, Status
from asynctasq.core.outcome import clip
from asynctasq.drivers.base import Page, TaskInfo, TaskQuery
from asynctasq.errors import AsyncTasQError
from asynctasq_django.models import DeadLetter, StoredTask, Task

T = TypeVar("T")

READ_LIMIT = 2.0
"""Seconds that a page waits for the broker."""
SHOWN = 10_000
"""Characters of arguments shown."""


def read(work: Coroutine[Any, Any, T]) -> T:
    """The result of a repository call. Raises AsyncTasQError, or TimeoutError after READ_LIMIT."""
    return _sync.run(asyncio.wait_for(work, READ_LIMIT))


def _say_unreadable(request: HttpRequest, error: Exception) -> None:
    messages.error(request, _("The broker cannot be read: %s") % (str(error) or type(error).__name__))


class StatusFilter(admin.SimpleListFilter):
    title = _("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(status, status) for status in STATUSES]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        return queryset


class QueueFilter(admin.SimpleListFilter):
    title = _("queue")
    parameter_name = "queue"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        # Those that this process's tasks name: to ask the broker for all would count every task.
        configs = (getattr(registry.get(name), "config", {}) for name in registry.names())
        names = {config.get("queue") for config in configs} | {asynctasq.Config.get().default_queue}
        names.add(request.GET.get(self.parameter_name))
        return [(name, name) for name in sorted(filter(None, names))]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        return queryset


if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin  # not generic at run time


class RepositoryChangeList(ChangeList):
    """A change list whose rows come from the Repository, a page at a time by cursor."""

    next_page: str | None = None

    def get_filters_params(self, params: Any = None) -> Any:
        remaining = super().get_filters_params(params)
        remaining.pop("cursor", None)
        return remaining

    def get_results(self, request: HttpRequest) -> None:
        page = self._page(request)
        self.result_list = [cast(RepositoryAdmin, self.model_admin).instance(info) for info in page.items]
        self.result_count = len(page.items)
        self.full_result_count = None
        self.show_full_result_count = False
        self.show_admin_actions = False
        self.can_show_all = False
        self.multi_page = False
        self.paginator = Paginator(self.result_list, self.list_per_page)
        if page.next is not None:
            self.next_page = "?" + urlencode({**request.GET.dict(), "cursor": page.next})
        if page.truncated:
            messages.info(request, _("Only the newest tasks were searched; the next page goes on from there."))

    def _page(self, request: HttpRequest) -> Page:
        filters = [spec for spec in self.filter_specs if isinstance(spec, admin.SimpleListFilter)]
        chosen = {spec.parameter_name: spec.value() for spec in filters}
        status = chosen.get("status")
        statuses = cast(RepositoryAdmin, self.model_admin).statuses or ([status] if status else STATUSES)
        try:
            repository = asynctasq.repository()
            if self.query:
                found = read(repository.get([self.query.strip()]))
                return Page(items=[info for info in found if info.status in statuses])
            query = TaskQuery(
                statuses=cast("frozenset[Status]", frozenset(statuses)),
                queue=chosen.get("queue"),
                cursor=request.GET.get("cursor"),
                limit=self.list_per_page,
            )
            return read(repository.find(query))
        except (AsyncTasQError, TimeoutError) as exc:
            _say_unreadable(request, exc)
            return Page(items=[])


class RepositoryAdmin(ModelAdmin):
    """Lists and shows; changes nothing."""

    change_list_template = "admin/asynctasq_django/change_list.html"
    statuses: Sequence[str] = ()
    list_per_page = 50
    ordering = ()
    sortable_by = ()
    search_fields = ("id",)
    search_help_text = _("The id of a task")
    actions = None
    list_display = ("id", "task", "queue_name", "status_shown", "attempts", "created_at", "worker", "error_type")
    fields = (
        "id",
        "task",
        "queue_name",
        "status_shown",
        "priority",
        "attempts",
        "arguments",
        "created_at",
        "available",
        "started_at",
        "finished_at",
        "worker",
        "correlation_id",
        "error_type",
        "error_message",
        "error_traceback",
        "first_failed_at",
        "last_failed_at",
    )
    readonly_fields = fields

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_queryset(self, request: HttpRequest) -> models.QuerySet[Any]:
        nothing: models.QuerySet[Any] = self.model._default_manager.none()
        return nothing

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return RepositoryChangeList

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        try:
            found = read(asynctasq.repository().get([object_id]))
        except (AsyncTasQError, TimeoutError) as exc:
            _say_unreadable(request, exc)
            return None
        return next((self.instance(one) for one in found if not self.statuses or one.status in self.statuses), None)

    def instance(self, info: TaskInfo) -> StoredTask:
        """A task of the broker as a model instance, which no database has seen."""
        made: StoredTask = self.model(
            id=info.id,
            queue_name=info.queue,
            task=info.task,
            payload=info.payload,
            priority=info.priority,
            current_attempt=info.attempt,
            max_attempts=info.max_attempts,
            created_at=info.created_at,
            started_at=info.started_at,
            finished_at=info.finished_at,
            worker=info.worker,
            correlation_id=info.correlation_id,
            error_type=info.error and info.error.type,
            error_message=info.error and info.error.message,
            error_traceback=info.error and info.error.traceback,
            first_failed_at=info.first_failed_at,
            last_failed_at=info.last_failed_at,
        )
        made.info = info  # type: ignore[attr-defined]
        made._state.adding = False
        return made

    @admin.display(description=_("status"))
    def status_shown(self, obj: Any) -> str:
        return str(obj.info.status)

    @admin.display(description=_("attempts"))
    def attempts(self, obj: Any) -> str:
        return f"{obj.current_attempt}/{obj.max_attempts}"

    @admin.display(description=_("not before"))
    def available(self, obj: Any) -> Any:
        return obj.info.available_at

    @admin.display(description=_("arguments"))
    def arguments(self, obj: Any) -> str:
        return clip(describe_arguments(obj.payload), SHOWN)


@admin.register(Task)
class TaskAdmin(RepositoryAdmin):
    list_filter = (StatusFilter, QueueFilter)


@admin.register(DeadLetter)
class DeadLetterAdmin(RepositoryAdmin):
    statuses = ("dead",)
    list_filter = (QueueFilter,)
