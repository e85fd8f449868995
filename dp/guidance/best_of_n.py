"""Samples several action sequences and executes the one that a critic likes best."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor

from dp.guidance.coherence import Coherence
from dp.guidance.value import Value
from dp.types import Critic, Obs, Planning, Situation


class BestOfN:
    """The cheapest of `n` samples (best-of-N, or random shooting with a policy as the proposal).

    The first sample is the one that would be executed without guidance, and wins ties. So n=1 equals no guidance to the
    bit, and so does a critic that is indifferent.

    Args:
        n: samples for each decision. A decision costs as much as denoising n times as many environments.
        critic: "value" is learned (`Value`) and sees what the policy sees. "simulator" tries every sample in the
            task's physics, from the true state of the environment: privileged knowledge that no robot has. "coherence"
            prefers what continues the last plan (`Coherence`).
        path: for critic=value: the directory of a `workspace=critic`, or the file in it.
        n_action_steps: Ta, the actions that are executed before the next decision.
        simulator: makes the task's own critic; None if the task has no physics to try actions in.

    Raises:
        ValueError: for critic=simulator without `simulator`, and for critic=value without a critic in `path`.
    """

    def __init__(
        self,
        n: Annotated[int, Interval(ge=1, le=1024)] = 16,
        critic: Literal["value", "simulator", "coherence"] = "value",
        path: str | None = None,
        n_action_steps: int = 8,
        simulator: Callable[[int], Critic] | None = None,
    ) -> None:
        if critic == "simulator" and simulator is None:
            raise ValueError("critic=simulator: the task has no physics to try actions in. Use critic=value")
        if (critic == "value") != (path is not None):
            raise ValueError(
                "critic=value needs guidance.path=DIR, the run directory of a trained critic: python run.py "
                "workspace=critic checkpoint=PATH run_dir=DIR. Without one: guidance.critic=coherence"
                if path is None
                else f"critic={critic} reads no file: leave guidance.path out"
            )
        self.n, self.sees_state = n, critic == "simulator"
        self.critic: Critic = (
            Value(Path(path)) if path is not None
            else simulator(n_action_steps) if simulator is not None and self.sees_state
            else Coherence(n_action_steps)
        )  # fmt: skip

    def act(self, policy: Planning, obs: Obs, situations: Sequence[Situation]) -> Float[Tensor, "B T Da"]:
        if isinstance(self.critic, Value):
            self.critic.check(policy)
        generators = [g for situation in situations for g in self._generators(situation)]
        cond = policy.encode(obs)
        plans = policy.plan(cond, generators, self.n)
        tried = plans.cpu().numpy()
        for row, situation in zip(cond, situations, strict=True):
            situation.cond = row
        chosen = [self.choose(*of) for of in zip(tried, situations, strict=True)]
        return plans[torch.arange(len(chosen)), chosen]

    def choose(self, plans: Float[np.ndarray, "n T Da"], situation: Situation) -> int:
        """Number of the plan to execute."""
        return int(np.argmin(self.critic.costs(plans, situation)))

    def _generators(self, situation: Situation) -> list[torch.Generator]:
        """The episode's own generator, and n - 1 more that its memory keeps."""
        own, more = situation.generator, situation.memory.setdefault("generators", [])
        for number in range(len(more) + 1, self.n):
            seed = np.random.SeedSequence((own.initial_seed(), number)).generate_state(1)[0]
            more.append(torch.Generator(own.device).manual_seed(int(seed)))  # a CPU generator uses 32 bits of a seed
        return [own, *more]
