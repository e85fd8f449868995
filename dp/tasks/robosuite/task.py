"""The facts of robomimic's tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from dp.tasks.env import Env
from dp.tasks.task import Protocol, Task

if TYPE_CHECKING:
    from dp.tasks.demonstration import Expert
    from dp.tasks.robosuite.lifter import Lifter

START_SEED = 100_000
"""First seed of both protocols."""


@dataclass(frozen=True)
class Known:
    """env_name: of robosuite. n_object: length of the observation "object". max_steps: of an episode at 20 Hz, as
    Chi et al. 2023 test it."""

    env_name: str
    n_object: int
    max_steps: int = 400
    n_arms: int = 1


TASKS = {
    "Lift": Known("Lift", 10),
    "Can": Known("PickPlaceCan", 14),
    "Square": Known("NutAssemblySquare", 14),
    "ToolHang": Known("ToolHang", 44, 700),
    "Transport": Known("TwoArmTransport", 41, 700, 2),
}
"""The tasks by robomimic's names."""

MOVEMENT, POSE = 7, 10
"""Numbers of an arm's action: movement (3), turn (3, axis times angle), gripper; or position (3), the first two rows of
a rotation matrix (6), gripper."""


class Robosuite(Task):
    """One of robomimic's tasks.

    The length of the action says its kind. 7: movement and turn, in steps of 5 cm and 0.5 rad, as robomimic's data sets
    have them. 10: an absolute pose, metres, as Chi et al. 2023 convert them. Two arms have twice as many. The gripper
    opens at -1 and closes at 1.

    Args:
        name: of `TASKS`.
        shape_meta, env, protocols, bounds: see `Task`. `shape_meta` says the sizes of pictures.

    Raises:
        ValueError: for an unknown name, and for an observation "object" or an action of another length.
    """

    score: ClassVar[str] = "share of episodes that are solved"
    success: ClassVar[str] = "share of episodes that are solved at any step, as robosuite defines it"
    reset: ClassVar[str] = "everything that robosuite draws, from numpy.random.seed(seed)"
    packages: ClassVar[tuple[str, ...]] = ()  # robosuite is in another Python
    default_bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"reward": (0.0, 1.0)}

    def __init__(
        self,
        name: str,
        shape_meta: Mapping[str, Any],
        env: Callable[..., Env] | None = None,
        protocols: Mapping[str, Mapping[str, int]] | None = None,
        bounds: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        super().__init__(name, shape_meta, env, protocols, bounds)
        if name not in TASKS:
            raise ValueError(f"name={name}, expected one of {', '.join(TASKS)}")
        self.known = TASKS[name]
        if not protocols:
            self.protocols = tuple(Protocol(f"robomimic-{n}", n, START_SEED, self.known.max_steps) for n in (50, 500))
        self._check_lengths()

    @property
    def action_kind(self) -> int:
        """`MOVEMENT` or `POSE`."""
        return self.shape_meta["action"]["shape"][0] // self.known.n_arms

    @property
    def make_env(self) -> Callable[[], Any] | None:
        if self.env is None:
            return None
        shapes = {name: tuple(spec["shape"]) for name, spec in self.shape_meta["obs"].items()}
        return partial(
            self.env,
            obs_names=self.obs_names,
            env_name=self.known.env_name,
            n_arms=self.known.n_arms,
            absolute=self.action_kind == POSE,
            sizes={name: shape[1:] for name, shape in shapes.items() if len(shape) == 3},
        )

    @property
    def demonstrator(self) -> "Lifter | None":
        from dp.tasks.robosuite.lifter import Lifter

        if self.make_env is None or self.name != "Lift" or self.action_kind != MOVEMENT:
            return None
        return Lifter(self.make_env)

    @property
    def expert(self) -> "Expert | None":
        demonstrator = self.demonstrator
        return None if demonstrator is None else demonstrator.finish

    def _check_lengths(self) -> None:
        n_arms, lengths = self.known.n_arms, {}
        lengths["action"] = [MOVEMENT * n_arms, POSE * n_arms]
        entries = {"action": self.shape_meta["action"]}
        if "object" in self.shape_meta["obs"]:
            lengths["obs.object"] = [self.known.n_object]
            entries["obs.object"] = self.shape_meta["obs"]["object"]
        for key, entry in entries.items():
            if list(entry["shape"]) not in [[length] for length in lengths[key]]:
                expected = " or ".join(f"task.shape_meta.{key}.shape=[{length}]" for length in lengths[key])
                raise ValueError(
                    f"shape_meta.{key}.shape={list(entry['shape'])} does not fit {self.name}: set {expected}"
                )
