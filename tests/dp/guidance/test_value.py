"""A learned critic knows costs that it has seen, and only of the policy whose view it shares."""

import os
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from dp.guidance import BestOfN, Practice, Value, ValueNetwork, view_of
from dp.guidance.value import FILE, FORMAT, digest_of
from dp.types import Situation
from tests.dp.guidance.test_guidance import Leftmost, executed
from tests.dp.rollouts.test_runner import policy  # noqa: F401


def lessons(n_decisions: int, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Plans cost their distance from where the situation wants them to end."""
    generator = torch.Generator().manual_seed(seed)
    cond = torch.randn(n_decisions, 2, 3, generator=generator)
    plans = 100 + 50 * torch.randn(n_decisions, n, 5, 2, generator=generator)
    return cond, plans, (plans[:, :, -1] - 100 - 50 * cond[:, None, -1, :2]).norm(dim=-1)


def trained(cond: torch.Tensor, plans: torch.Tensor, costs: torch.Tensor, n_steps: int = 400) -> ValueNetwork:
    torch.manual_seed(0)
    network = ValueNetwork(6, 10, width=64, depth=2)
    network.standardize_with(cond, plans, costs)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for _ in range(n_steps):
        rows = torch.randint(len(cond), (64,))
        loss = network.loss(cond[rows], plans[rows], costs[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("known", ["all", "one of four"])
def test_it_learns_which_plan_is_cheapest(known):
    cond, plans, costs = lessons(2000, 4, 0)
    if known == "one of four":
        costs = torch.where(torch.arange(4) == 0, costs, torch.nan)
    network = trained(cond, plans, costs)
    cond, plans, costs = lessons(200, 16, 1)
    with torch.no_grad():
        chosen = network(cond, plans).argmin(1, keepdim=True)
    assert costs.gather(1, chosen).mean() < costs.min(1).values.mean() + 0.2 * (
        costs.mean() - costs.min(1).values.mean()
    )


def test_unknown_costs_have_no_gradient():
    cond, plans, costs = lessons(8, 4, 0)
    network = ValueNetwork(6, 10, 16, 1)
    costs[:, 1:] = torch.nan
    one = network.loss(cond, plans, costs)
    plans[:, 1:] += 1000
    assert torch.equal(network.loss(cond, plans, costs), one)
    one.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert network.loss(cond, plans, torch.full_like(costs, torch.nan)) == 0


@pytest.fixture
def directory(policy, tmp_path):  # noqa: F811
    """Of a critic that wants plans to begin far on the left."""
    cond = policy.encode({name: torch.zeros(1, 2, *shape) for name, shape in SEEN.items()})
    network = ValueNetwork(cond.numel(), 15 * 2, width=8, depth=1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.first.weight[0, cond.numel()] = 1e-2  # x of the first action
        network.first.bias[1] = 3  # otherwise the norm would leave nothing of it but its sign
        network.last[1].weight[0, 0] = 1
        network.last[0].weight.fill_(1)
    (tmp_path / FILE).write_bytes(network.to_bytes(view_of(policy), ""))
    return tmp_path


SEEN = {"agent_pos": (2,), "block_pose": (4,)}


def test_the_plan_it_likes_is_executed(policy, directory):  # noqa: F811
    critic, situation = Value(directory), Situation(torch.Generator(), cond=torch.zeros(2, 6))
    plans = np.random.default_rng(0).normal(size=(9, 15, 2)).astype(np.float32)
    assert critic.costs(plans, situation).argmin() == plans[:, 0, 0].argmin()
    starts = [
        np.mean([actions[0, 0] for actions in executed(policy, BestOfN(n, "value", str(directory)))])
        for n in (1, 4, 16)
    ]
    assert starts[0] > starts[1] > starts[2]


def test_a_critic_of_another_policy_that_sees_the_same_is_told(policy, directory, caplog):  # noqa: F811
    network = Value(directory).network
    for trained_for, told in ((digest_of(policy), 0), ("another", 1)):
        (directory / FILE).write_bytes(network.to_bytes(view_of(policy), trained_for))
        Value(directory).check(policy)
        assert caplog.text.count("was trained on the plans of another policy") == told


def changed(file: bytes, name: str, tensor: torch.Tensor) -> bytes:
    return save({**load(file), name: tensor}, {"format": FORMAT, "view": ""})


def test_another_policys_critic_and_other_files_are_refused(policy, directory):  # noqa: F811
    file = directory / FILE
    whole = file.read_bytes()
    file.write_bytes(ValueNetwork(12, 30, 8, 1).to_bytes("another", ""))
    with pytest.raises(ValueError, match="was trained on what another policy's encoder sees"):
        executed(policy, BestOfN(2, "value", str(directory)))
    for content, said in (
        (b"", "is damaged or no critic"),
        (whole[:-8], "is damaged or no critic"),
        (save({"x": torch.zeros(1)}), "is no critic"),
        (save({"x": torch.zeros(1)}, {"format": FORMAT}), "is damaged or no critic"),
        (changed(whole, "first.weight", torch.zeros(8)), "is damaged or no critic"),
        (changed(whole, "cond_mean", torch.zeros(())), "is damaged or no critic"),
        (changed(whole, "plan_std", torch.zeros(30)), "is damaged or no critic: plan_std has values"),
        (changed(whole, "first.bias", torch.full((8,), torch.nan)), "is damaged or no critic: first.bias has values"),
        (changed(whole, "first.weight", torch.zeros(1 << 21, 1)), "is damaged or no critic"),  # blocks of 16 TiB
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(str(file)) + " " + said):
            Value(directory)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match=r"is not a file\. Expected the directory of a workspace=critic"):
        Value(directory)
    file.unlink()
    with pytest.raises(ValueError, match=r"there is no critic .*: python run.py workspace=critic"):
        Value(directory)
    for given, said in (
        ({"critic": "value"}, "critic=value needs guidance.path=DIR"),
        ({"critic": "coherence", "path": "here"}, "critic=coherence reads no file"),
    ):
        with pytest.raises(ValueError, match=said):
            BestOfN(2, **given)


def test_practice_records_every_decision_and_its_costs(policy):  # noqa: F811
    practice = Practice(4, 8, Leftmost)
    actions = executed(policy, practice)
    for seed, of_episode in zip(range(100_000, 100_003), actions, strict=True):
        decisions = practice.decisions[seed]
        assert len(decisions) == 3
        for number, decision in enumerate(decisions):
            assert decision.plans.shape == (4, 15, 2)
            assert np.array_equal(decision.costs, decision.plans[:, 7, 0])
            done = of_episode[8 * number : 8 * number + 8]
            assert np.array_equal(decision.plans[decision.chosen, : len(done)], done)
    assert {d.chosen == 0 for decisions in practice.decisions.values() for d in decisions} == {True, False}
    alone = Practice(4, 8, None)
    executed(policy, alone)
    assert all(len(d.plans) == 1 and np.isnan(d.costs).all() for d in alone.decisions[100_000])
