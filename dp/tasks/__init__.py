"""Tasks: a folder each, and `Task`, what they all say of themselves."""

from dp.tasks.task import Protocol, Reference, Scene, Task

__all__ = ["Protocol", "Reference", "Scene", "Task"]
