"""The drawn pictures and questions that the pocket pair was trained on."""

from vlroute.pocket.tasks import LEVELS, TASKS, Task, draw_task

__all__ = ["LEVELS", "TASKS", "Task", "draw_task"]
