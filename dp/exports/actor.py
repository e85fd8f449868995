"""A whole policy as one function of tensors, which compilers and exporters take."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dp import kernels
from dp.policy import DiffusionPolicy


class Actor(nn.Module):
    """Raw observations and noise in, the chunk of actions out, in raw units. The number of diffusion steps is fixed.

    It computes with torch's own operators (`kernels=reference`), which exporters know.

    Args:
        policy: in evaluation mode, on a CPU.

    Raises:
        ValueError: for a sampler that draws more noise than the first: its actions would not follow from the inputs.
    """

    def __init__(self, policy: DiffusionPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.names = [name for name in policy.normalizer.specs if name != "action"]
        noise, *obs = self.example()
        first, second = (self._seeded(seed, noise, *obs) for seed in (0, 1))
        if not torch.equal(first, second):
            sampler = type(getattr(policy.objective, "scheduler", policy.objective)).__name__
            raise ValueError(
                f"{sampler} draws noise at every step, so its actions do not follow from the inputs: set "
                "scheduler=ddim or scheduler=dpm_solver"
            )

    def forward(self, noise: Float[Tensor, "B H Da"], *obs: Tensor) -> Float[Tensor, "B Ta Da"]:
        """obs: those of the task in their order (`names`), each (B, To, ...)."""
        policy = self.policy
        cond = policy.encode(dict(zip(self.names, obs, strict=True)))
        action = policy.objective.sample(policy.denoiser, noise, cond, None)
        action = action.clamp(-1, 1) if policy.normalizer.clamps("action") else action
        start = policy.n_obs_steps - 1
        return policy.normalizer.unnormalize("action", action)[:, start : start + policy.n_action_steps]

    def example(self, batch: int = 1, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs of `forward`."""
        policy, generator = self.policy, torch.Generator().manual_seed(seed)
        noise = torch.randn(batch, policy.horizon, policy.action_dim, generator=generator)
        obs = []
        for name in self.names:
            spec, lead = policy.normalizer.specs[name], (batch, policy.n_obs_steps)
            if spec.type == "rgb":
                shape = (*lead, *spec.shape[1:], spec.shape[0])
                obs.append(torch.randint(256, shape, generator=generator, dtype=torch.uint8))
            else:
                obs.append(policy.normalizer.unnormalize(name, torch.rand(*lead, *spec.shape, generator=generator)))
        return (noise, *obs)

    def exported(self) -> torch.export.ExportedProgram:
        """The graph of `forward` for a batch of one observation."""
        with torch.no_grad(), kernels.use("reference"), _known_timesteps(self.policy):
            return torch.export.export(self, self.example(), strict=False)

    @torch.no_grad()
    def reference(self, noise: Tensor, *obs: Tensor) -> Tensor:
        """What `forward` computes, without compiling anything."""
        with kernels.use("reference"):
            return self(noise, *obs)

    def _seeded(self, seed: int, noise: Tensor, *obs: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.reference(noise, *obs)


@contextmanager
def _known_timesteps(policy: DiffusionPolicy) -> Iterator[None]:
    """A context in which the scheduler's timesteps are plain numbers, and not results of a traced computation."""
    scheduler, setting = getattr(policy.objective, "scheduler", None), getattr(policy.objective, "_setting", None)
    if scheduler is None or setting is None:
        yield
        return
    scheduler.set_timesteps(setting)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else it searches for the first timestep, among traced numbers
    begun = dict(vars(scheduler))

    def begin(_: int) -> None:
        vars(scheduler).update({name: list(x) if isinstance(x, list) else x for name, x in begun.items()})

    scheduler.set_timesteps = begin
    try:
        yield
    finally:
        del scheduler.set_timesteps
