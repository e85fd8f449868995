"""Plans that are late, and plans that begin with what is under way."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from dp.guidance import Inpainting, Unguided, WarmStart
from dp.objectives import Diffusion
from dp.rollouts.runner import EnvRunner
from dp.types import Situation
from tests.dp.guidance.test_guidance import CPU
from tests.dp.rollouts.test_runner import SHAPES, TellingEnv, policy  # noqa: F401


class Telling:
    """Plans nine actions that say which plan they belong to, and their place in it."""

    n_action_steps, n_plans = 4, 0

    def loss(self, batch):
        raise NotImplementedError

    def act(self, obs, generator=None):
        raise NotImplementedError

    def encode(self, obs):
        return obs["agent_pos"]

    def plan(self, cond, generator=None, n=1, wrap=None):
        self.n_plans += 1
        places = torch.stack([torch.full((9,), 100.0 * self.n_plans), torch.arange(9.0)], dim=-1)
        return places.expand(len(cond), 1, 9, 2)


def late(n_late: int, max_steps: int = 12) -> list[list[float]]:
    runner = EnvRunner(lambda: TellingEnv(list(SHAPES)), 2, 1, 100_000, 0, max_steps, 1, 0, 0, n_late=n_late)
    return np.stack(runner.run(Telling(), CPU).episodes[0].actions).tolist()


def test_while_a_plan_is_late_the_last_one_goes_on():
    in_time = late(0)
    assert in_time == [[100 * plan, place] for plan in (1, 2, 3) for place in range(4)]
    # At the beginning the robot waits for its first plan.
    assert late(3) == [
        *([100, place] for place in range(4)),
        *([100, 4], [100, 5], [100, 6], [200, 3]),
        *([200, 4], [200, 5], [200, 6], [300, 3]),
    ]
    with pytest.raises(ValueError, match="n_late=6, but a plan has only 5 actions left after n_action_steps=4"):
        late(6)


class Constant:
    """The exact denoiser of actions that are the same at every step of a window, drawn from N(0, 1)."""

    def __init__(self, objective: Diffusion) -> None:
        self.abar = objective.alphas_cumprod

    def __call__(self, x, t, cond):
        abar = self.abar[t[:, 0].long()][:, None, None]
        mean = abar**0.5 * x.sum(1, keepdim=True) / (abar * x.shape[1] + 1 - abar)
        return (x - abar**0.5 * mean) / (1 - abar) ** 0.5


def test_the_rest_of_a_plan_follows_from_what_is_known(policy):  # noqa: F811
    objective = Diffusion(DDIMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2"), 20)
    before = policy.objective, policy.denoiser
    policy.objective = objective
    try:
        guidance, known = Inpainting(6), torch.linspace(100, 400, 24)
        situations = [
            Situation(torch.Generator().manual_seed(row), plan=x.expand(15, 2)) for row, x in enumerate(known)
        ]
        obs = {name: torch.zeros(len(known), 2, *shape) for name, shape in SHAPES.items()}
        policy.fast_denoiser = Constant(objective)
        plans = guidance.act(policy, obs, situations)
    finally:
        policy.objective, policy.denoiser = before
        policy.fast_denoiser = None
    assert torch.allclose(plans[:, :6], known[:, None, None].expand(-1, 6, 2))
    rest = plans[:, 6:].mean((1, 2))
    assert np.corrcoef(known, rest)[0, 1] > 0.95
    assert ((rest[-1] - rest[0]) / (known[-1] - known[0])).item() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_a_warm_start_leads_to_the_last_plan_and_saves_evaluations(policy, prediction_type, kind):  # noqa: F811
    class Counting(Constant):
        n = 0

        def __call__(self, x, t, cond):
            Counting.n += 1
            return torch.zeros_like(x)

    scheduler = kind(num_train_timesteps=100, prediction_type=prediction_type)
    before, policy.objective = policy.objective, Diffusion(scheduler, 10)
    last = torch.linspace(150, 350, 15)[:, None].expand(15, 2)
    obs = {name: torch.zeros(2, 2, *shape) for name, shape in SHAPES.items()}
    try:
        policy.fast_denoiser = Counting(policy.objective)
        for share, n in ((0.0, 10), (0.5, 5), (0.9, 1)):
            Counting.n = 0
            situations = [Situation(torch.Generator().manual_seed(row), plan=last) for row in range(2)]
            plans = WarmStart(share).act(policy, obs, situations)
            assert Counting.n == n
        if prediction_type == "epsilon":  # the denoiser takes no more noise away
            wanted = torch.cat([last[8:], last[-1:].expand(8, 2)])
            assert (plans[0] - wanted).abs().mean() < 30
        Counting.n = 0
        WarmStart(0.5).act(policy, obs, [Situation(torch.Generator(), plan=plan) for plan in (last, None)])
        assert Counting.n == 10  # an episode begins: its row needs the network
    finally:
        policy.objective, policy.fast_denoiser = before, None


def test_an_objective_without_a_forward_process_is_refused(policy):  # noqa: F811
    objective = policy.objective
    policy.objective = torch.nn.Identity()
    try:
        with pytest.raises(ValueError, match="guidance=inpainting needs an objective with the method `noisy`"):
            Inpainting(2).act(policy, {}, [])
    finally:
        policy.objective = objective


def test_a_sample_of_before_is_a_plan_of_its_own(policy):  # noqa: F811
    """Without `plan` and `encode`, a policy's chunk is what is executed."""

    class Acting:
        def loss(self, batch):
            raise NotImplementedError

        def act(self, obs, generator=None):
            return torch.ones(len(obs["agent_pos"]), 3, 2)

    obs = {"agent_pos": torch.zeros(2, 2, 2)}
    assert Unguided().act(Acting(), obs, [Situation(torch.Generator())] * 2).shape == (2, 3, 2)
