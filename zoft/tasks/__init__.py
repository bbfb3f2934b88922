"""Tasks: one class a task, and the one registry of them, :data:`TASKS`."""

from __future__ import annotations

from zoft.config import unknown
from zoft.errors import UsageError
from zoft.tasks.base import ROLES, SPLITS, Example, Task, TextTask
from zoft.tasks.offline import OFFLINE_TASKS

#: Every task by its name. A new task is a class and its place in a tuple such as ``OFFLINE_TASKS``.
TASKS: dict[str, type[TextTask]] = {task.name: task for task in OFFLINE_TASKS}


def tasks_with_role(role: str) -> list[str]:
    """Names of the tasks with ``role``, in the registry's order.

    Raises:
        UsageError: ``role`` is none of :data:`zoft.tasks.base.ROLES`.
    """
    if role not in ROLES:
        raise UsageError(unknown("role", role, ROLES), f"Use one of {', '.join(ROLES)}.")
    return [name for name, task in TASKS.items() if task.role == role]


def get_task(name: str) -> TextTask:
    """The task called ``name``.

    Raises:
        UsageError: there is none; names the nearest ones.
    """
    if name not in TASKS:
        raise UsageError(unknown("task", name, TASKS), "Give your own data with --dataset FILE.")
    return TASKS[name]()


__all__ = ["ROLES", "SPLITS", "TASKS", "Example", "Task", "TextTask", "get_task", "tasks_with_role"]
