"""The facts of Meta-World."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from dp.tasks.env import Env
from dp.tasks.task import Protocol, Task

if TYPE_CHECKING:
    from dp.tasks.demonstration import Expert
    from dp.tasks.metaworld.scripted import Scripted


class MetaWorld(Task):
    """One of the benchmark's tasks, or several in one policy.

    Args:
        tasks: of which the seed chooses; None: the one that `name` says.
        name, shape_meta, env, protocols, bounds: see `Task`. `shape_meta` says the sizes of pictures.

    Raises:
        ValueError: for no tasks, or the same one twice; if the observation "task" has another length.
    """

    score: ClassVar[str] = "mean over episodes of the best reward / 10, and 1 when solved"
    success: ClassVar[str] = "share of episodes that are solved at any step, as the benchmark defines it"
    reset: ClassVar[str] = "objects and goal drawn from the benchmark's whole range by env.seed(seed)"
    packages: ClassVar[tuple[str, ...]] = ("metaworld", "mujoco", "gymnasium")
    default_protocols: ClassVar[tuple[Protocol, ...]] = (
        Protocol("metaworld-100", 100, 100_000, 500),
        Protocol("metaworld-500", 500, 100_000, 500),
    )
    default_bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"reward": (0.0, 1.0)}

    def __init__(
        self,
        name: str,
        shape_meta: Mapping[str, Any],
        env: Callable[..., Env] | None = None,
        protocols: Mapping[str, Mapping[str, int]] | None = None,
        bounds: Mapping[str, Sequence[float]] | None = None,
        tasks: Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, shape_meta, env, protocols, bounds)
        self.tasks = (name,) if tasks is None else tuple(tasks)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks={list(self.tasks)}, expected one or more different ones, or null for that of name")
        vector = shape_meta["obs"].get("task")
        if vector is not None and list(vector["shape"]) != [len(self.tasks)]:
            raise ValueError(
                f"shape_meta.obs.task.shape={list(vector['shape'])}, but there are {len(self.tasks)} tasks: set "
                f"task.shape_meta.obs.task.shape=[{len(self.tasks)}]"
            )

    @property
    def demonstrated(self) -> str:
        return ", ".join(self.tasks)

    tested_in = demonstrated

    @property
    def make_env(self) -> Callable[[], Any] | None:
        if self.env is None:
            return None
        shapes = {name: tuple(spec["shape"]) for name, spec in self.shape_meta["obs"].items()}
        sizes = {name: shape[1:] for name, shape in shapes.items() if len(shape) == 3}
        return partial(self.env, obs_names=self.obs_names, tasks=self.tasks, sizes=sizes)

    @property
    def demonstrator(self) -> "Scripted | None":
        from dp.tasks.metaworld.scripted import Scripted

        return None if self.make_env is None else Scripted(self.make_env)

    @property
    def expert(self) -> "Expert | None":
        demonstrator = self.demonstrator
        return None if demonstrator is None else demonstrator.finish
