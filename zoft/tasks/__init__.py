"""Tasks: one class a task, and the one registry of them, :data:`TASKS`."""

from __future__ import annotations

from zoft.config import unknown
from zoft.errors import UsageError
from zoft.tasks.base import ROLES, SPLITS, Example, Task, TextTask
from zoft.tasks.offline import OFFLINE_TASKS
from zoft.tasks.published import PUBLISHED_TASKS, PublishedTask

#: Every task by its name. A new task is a class and its place in a tuple such as ``OFFLINE_TASKS``.
TASKS: dict[str, type[TextTask]] = {task.name: task for task in (*OFFLINE_TASKS, *PUBLISHED_TASKS)}


def tasks_with_role(role: str, offline: bool = True) -> list[str]:
    """Names of the tasks with ``role``, in the registry's order: what is a default for want of another choice.

    Args:
        offline: only those whose examples come with the package.

    Raises:
        UsageError: ``role`` is none of :data:`zoft.tasks.base.ROLES`.
    """
    if role not in ROLES:
        raise UsageError(unknown("role", role, ROLES), f"Use one of {', '.join(ROLES)}.")
    return [name for name, task in TASKS.items() if task.role == role and (task.offline or not offline)]


def get_task(name: str, data_dir: str | None = None, per_class: int | None = None, seed: int = 0) -> TextTask:
    """The task called ``name``.

    Args:
        data_dir: a folder with local copies of a published task's data set, in place of the Hub.
        per_class: examples of each class that a published task trains on, in place of 1,000 altogether.
        seed: of the examples that a published task draws.

    Raises:
        UsageError: there is none, with the nearest ones named; or an option that it has no use for.
    """
    if name not in TASKS:
        raise UsageError(unknown("task", name, TASKS), "Give your own data with --dataset FILE.")
    kind = TASKS[name]
    if issubclass(kind, PublishedTask):
        return kind(data_dir=data_dir, seed=seed, per_class=per_class)
    given = [flag for flag, value in (("--data-dir", data_dir), ("--per-class", per_class)) if value is not None]
    if given:
        raise UsageError(
            f"task {name!r} makes its examples itself, so {' and '.join(given)} have no use", "Leave them out."
        )
    return kind()


__all__ = ["ROLES", "SPLITS", "TASKS", "Example", "Task", "TextTask", "get_task", "tasks_with_role"]
