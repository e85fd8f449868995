"""Tasks, one folder each, and `Task`, the facts that each of them states."""

from dp.tasks.elsewhere import Elsewhere
from dp.tasks.task import Protocol, Reference, Scene, Task

__all__ = ["Elsewhere", "Protocol", "Reference", "Scene", "Task"]
