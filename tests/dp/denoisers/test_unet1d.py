"""The UNet equals a plain channels-first one, and its variants do what a denoiser must."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from benchmarks.rivals.plain_unet import PlainUNet1d
from dp.denoisers import UNet1d
from dp.denoisers.unet1d import SinusoidalEmbedding
from dp.encoders import ResNetEncoder
from dp.kernels import ROWS, sampling_loop
from tests.specs import specs

CONFIGS = Path(__file__).parents[3] / "configs" / "denoiser"
VARIANTS = ["unet1d", "unet1d_small", "unet1d_additive"]


def settings(variant: str) -> dict:
    """The configured network at a sixteenth of its width."""
    settings = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{variant}.yaml"))
    del settings["_target_"]
    return {**settings, "action_dim": 2, "cond_dim": 12, "channels": [width // 16 for width in settings["channels"]]}


def narrow(variant: str) -> UNet1d:
    torch.manual_seed(0)
    return UNet1d(**settings(variant))


def inputs(horizon: int, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, horizon, 2, generator=generator),
        torch.linspace(0, 99, batch).long()[:, None],
        torch.randn(batch, 2, 6, generator=generator),
    )


def sinusoidal_embedding(k: Tensor, dim: int) -> Tensor:
    half = dim // 2
    rows = [
        [f(int(step) * 10_000 ** (-i / (half - 1))) for f in (math.sin, math.cos) for i in range(half)] for step in k
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize("batch", [3, 64])  # without and with `winograd`
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_a_reference_network_with_its_weights(variant: str, batch: int) -> None:
    torch.manual_seed(0)
    reference = PlainUNet1d(**settings(variant))
    ours = narrow(variant)
    ours.load_state_dict(reference.state_dict(), strict=True)
    x, k, cond = inputs(horizon=16, batch=batch)
    torch.testing.assert_close(ours(x, k, cond), reference(x, k[:, 0], cond.flatten(1)), atol=1e-4, rtol=1e-4)


def test_the_last_block_has_eight_groups_as_in_the_reference() -> None:
    unet = UNet1d(2, 12, channels=[16, 32], n_groups=4)
    groups = {name: m.num_groups for name, m in unet.named_modules() if hasattr(m, "num_groups")}
    assert groups.pop("final_conv.0.block.1") == 8
    assert set(groups.values()) == {4}


def test_a_condition_may_only_shift() -> None:
    """The reference implementation's `cond_predict_scale=False`: its FiLM layers have one output per channel."""
    torch.manual_seed(0)
    unet = UNet1d(2, 12, channels=[16, 32], film="bias")
    block = unet.down_modules[0][0]
    x, step, cond = torch.randn(4, 3, 2), torch.randn(3, 128), torch.randn(3, 12)
    shift = F.linear(torch.cat([step, cond], 1), block.cond_encoder["1"].weight, block.cond_encoder["1"].bias)
    assert shift.shape == (3, 16)
    expected = block.blocks[1](block.blocks[0](x) + shift) + block.residual_conv(x)
    torch.testing.assert_close(block(x, (step, cond)), expected)


def test_the_papers_networks_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        encoder = ResNetEncoder(specs(image=(3, 96, 96), agent_pos=(2,)))
        denoiser = UNet1d(action_dim=2, cond_dim=2 * encoder.out_dim)
    count = sum(p.numel() for module in (encoder, denoiser) for p in module.parameters())
    assert count == 262_709_026  # as LeRobot prints for its diffusion policy on PushT


@pytest.mark.parametrize("horizon", [1, 8, 10, 13, 16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_horizon_works_and_is_padded_with_zeros_at_its_end(variant: str, horizon: int) -> None:
    unet = narrow(variant)
    x, k, cond = inputs(horizon)
    y = unet(x, k, cond)
    assert y.shape == x.shape
    assert y.isfinite().all()
    padded = torch.cat([x, torch.zeros(3, -horizon % 4, 2)], dim=1)
    torch.testing.assert_close(y, unet(padded, k, cond)[:, :horizon])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_step_the_condition_and_every_action_matter(variant: str) -> None:
    unet = narrow(variant)
    x, k, cond = inputs(horizon=8)
    y = unet(x, k, cond)
    assert (unet(x, k.flip(0), cond) - y)[[0, 2]].abs().amax(dim=(1, 2)).min() > 1e-3
    assert (unet(x, k, cond + 1) - y).abs().amax(dim=(1, 2)).min() > 1e-3
    for t in range(8):
        moved = x.clone()
        moved[:, t] += 1
        assert (unet(moved, k, cond) - y).abs().amax(dim=(1, 2)).min() > 1e-3, f"timestep {t} is not seen"


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_of_a_batch_do_not_mix(variant: str) -> None:
    unet = narrow(variant)
    x, k, cond = inputs(horizon=8)
    alone = torch.cat([unet(x[i : i + 1], k[i : i + 1], cond[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(unet(x, k, cond), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_is_trained(variant: str) -> None:
    unet = narrow(variant)
    unet(*inputs(horizon=16)).square().sum().backward()
    assert [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_step_embedding_is_sine_then_cosine() -> None:
    embedding = SinusoidalEmbedding(8)(torch.tensor([0, 7]))
    torch.testing.assert_close(embedding[0], torch.tensor([0.0] * 4 + [1.0] * 4))
    torch.testing.assert_close(embedding[1], sinusoidal_embedding(torch.tensor([7]), 8)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fractional_time_lies_between_its_neighbours(variant: str) -> None:
    unet = narrow(variant)
    x, _, cond = inputs(horizon=8)
    before, between, after = (unet(x, torch.full((3, 1), t), cond) for t in (40.0, 40.5, 41.0))
    assert torch.equal(before, unet(x, torch.full((3, 1), 40), cond))
    assert 0 < (between - before).norm() < (after - before).norm()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_second_time_matters_and_changes_no_other_weight(variant: str) -> None:
    one = narrow(variant)
    torch.manual_seed(0)
    two = UNet1d(**settings(variant), n_times=2)
    assert all(torch.equal(two.state_dict()[name], weight) for name, weight in one.state_dict().items())
    x, k, cond = inputs(horizon=8)
    first = two(x, torch.cat([k, k], 1), cond)
    assert (two(x, torch.cat([k, k + 30], 1), cond) - first).abs().amax(dim=(1, 2)).min() > 1e-3
    assert (two(x, torch.cat([k + 30, k], 1), cond) - first).abs().amax(dim=(1, 2)).min() > 1e-3
    first.square().sum().backward()
    assert [name for name, p in two.named_parameters() if p.grad is None or not p.grad.any()] == []


BAD = {
    "norm=batch": "norm='batch'",
    "film=none": "film='none'",
    "cond_merge=sum": "cond_merge='sum'",
    "skip=no": "skip='no'",
    "skip=add": "channels=(16, 32), skip='add'",
    "channels=[]": "channels=()",
    "channels=[16, 20]": "channels=(16, 20)",
    "kernel_size=4": "kernel_size=4",
    "n_groups=0": "n_groups=0",
    "step_embed_dim=2": "step_embed_dim=2",
    "step_embed_dim=7": "step_embed_dim=7",
    "n_times=3": "n_times=3",
}


def test_bad_arguments_are_refused_by_name() -> None:
    """In a process of its own: here, the type checker would refuse an unknown choice first."""
    code = "from dp.denoisers import UNet1d\n" + "".join(
        f"try: UNet1d(2, 12, {arguments})\nexcept ValueError as error: print(error)\n" for arguments in BAD.values()
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line[: len(start)] for line, start in zip(said, BAD, strict=True)] == list(BAD)


@torch.no_grad()
def test_in_its_real_size_a_row_does_not_depend_on_those_beside_it() -> None:
    """In multiples of a rollout's padding, to the bit: otherwise scores would depend on `n_envs`."""
    settings = OmegaConf.to_container(OmegaConf.load(CONFIGS / "unet1d_small.yaml"))
    del settings["_target_"]
    network = UNet1d(**settings, action_dim=2, cond_dim=12).eval()
    given = inputs(16, 4 * ROWS)
    with sampling_loop():
        together = network(*given)
        for n in range(ROWS, 4 * ROWS, ROWS):
            assert torch.equal(network(*(x[:n].contiguous() for x in given)), together[:n])
