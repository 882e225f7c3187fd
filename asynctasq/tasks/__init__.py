"""Tasks: functions with ``@task``, or classes of one of four kinds."""

from __future__ import annotations

from asynctasq.tasks.base import AsyncProcessTask, AsyncTask, BaseTask, SyncProcessTask, SyncTask
from asynctasq.tasks.function import FunctionTask, TaskFunction, task
from asynctasq.tasks.options import TaskConfig

__all__ = [
    "AsyncProcessTask",
    "AsyncTask",
    "BaseTask",
    "FunctionTask",
    "SyncProcessTask",
    "SyncTask",
    "TaskConfig",
    "TaskFunction",
    "task",
]
