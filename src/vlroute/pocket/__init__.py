"""The drawn pictures and questions that the pocket pair was trained on."""

from vlroute.pocket.tasks import FAMILIES, LEVELS, Task, draw_task

__all__ = ["FAMILIES", "LEVELS", "Task", "draw_task"]
