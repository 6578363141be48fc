"""The world of the pocket pair: small drawn pictures, graded questions, exact answers."""

from vlroute.pocket.tasks import FAMILIES, LEVELS, Task, draw_task

__all__ = ["FAMILIES", "LEVELS", "Task", "draw_task"]
