"""The UNet equals a plain channels-first one, and its variants do what a denoiser must."""

import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from dp.denoisers import UNet1d
from dp.denoisers.unet1d import SinusoidalEmbedding
from dp.encoders import ResNetEncoder

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


def inputs(horizon: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(3, horizon, 2, generator=generator),
        torch.tensor([0, 50, 99]),
        torch.randn(3, 12, generator=generator),
    )


class ChannelNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, groups: int, norm: str) -> None:
        super().__init__()
        normalise = nn.GroupNorm(groups, outputs) if norm == "group" else ChannelNorm(outputs)
        self.block = nn.Sequential(nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2), normalise, nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ResBlock(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, cond_dim: int, kernel: int, groups: int, norm: str, film: str
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [Block(inputs, outputs, kernel, groups, norm), Block(outputs, outputs, kernel, groups, norm)]
        )
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, 2 * outputs))
        self.residual_conv = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.identity = 1 if film == "residual" else 0

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        embed = self.cond_encoder(cond)
        outputs = embed.shape[1] // 2
        h = (self.identity + embed[:, :outputs, None]) * self.blocks[0](x) + embed[:, outputs:, None]
        return self.blocks[1](h) + self.residual_conv(x)


class Sampling(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SinusoidalPosEmb(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, k: Tensor) -> Tensor:
        half = self.dim // 2
        rows = [
            [f(int(step) * 10_000 ** (-i / (half - 1))) for f in (math.sin, math.cos) for i in range(half)]
            for step in k
        ]
        return torch.tensor(rows)


class ReferenceConditionalUnet1D(nn.Module):
    """The network as it is usually written: (B, C, L), torch's own layers, the reference's module names."""

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        channels: list[int],
        kernel_size: int,
        step_embed_dim: int,
        n_groups: int,
        norm: str,
        film: str,
        cond_merge: str,
        skip: str,
    ) -> None:
        super().__init__()
        embed, self.add_cond, self.add_skips = step_embed_dim, cond_merge == "add", skip == "add"
        self.diffusion_step_encoder = nn.Sequential(
            SinusoidalPosEmb(embed), nn.Linear(embed, 4 * embed), nn.Mish(), nn.Linear(4 * embed, embed)
        )
        widths = [action_dim, *channels]

        self.cond_projection = nn.Linear(cond_dim, embed) if self.add_cond else nn.Identity()
        film_dim = embed if self.add_cond else embed + cond_dim

        def res(inputs: int, outputs: int) -> ResBlock:
            return ResBlock(inputs, outputs, film_dim, kernel_size, n_groups, norm, film)

        self.down_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    res(widths[i], widths[i + 1]),
                    res(widths[i + 1], widths[i + 1]),
                    Sampling(nn.Conv1d(widths[i + 1], widths[i + 1], 3, 2, 1))
                    if i + 1 < len(channels)
                    else nn.Identity(),
                ]
            )
            for i in range(len(channels))
        )
        self.mid_modules = nn.ModuleList([res(channels[-1], channels[-1]), res(channels[-1], channels[-1])])
        self.up_modules = nn.ModuleList(
            nn.ModuleList(
                [
                    res(channels[i] if self.add_skips else 2 * channels[i], channels[i - 1]),
                    res(channels[i - 1], channels[i - 1]),
                    Sampling(nn.ConvTranspose1d(channels[i - 1], channels[i - 1], 4, 2, 1)),
                ]
            )
            for i in range(len(channels) - 1, 0, -1)
        )
        self.final_conv = nn.Sequential(
            Block(channels[0], channels[0], kernel_size, n_groups, norm), nn.Conv1d(channels[0], action_dim, 1)
        )

    def forward(self, x: Tensor, k: Tensor, cond: Tensor) -> Tensor:
        step, cond = self.diffusion_step_encoder(k), self.cond_projection(cond)
        cond = step + cond if self.add_cond else torch.cat([step, cond], dim=1)
        h, skips = x.transpose(1, 2), []
        for first, second, down in self.down_modules:
            h = second(first(h, cond), cond)
            skips.append(h)
            h = down(h)
        for block in self.mid_modules:
            h = block(h, cond)
        for first, second, up in self.up_modules:
            h = h + skips.pop() if self.add_skips else torch.cat([h, skips.pop()], dim=1)
            h = up(second(first(h, cond), cond))
        return self.final_conv(h).transpose(1, 2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_a_reference_network_with_its_weights(variant: str) -> None:
    torch.manual_seed(0)
    reference = ReferenceConditionalUnet1D(**settings(variant))
    ours = narrow(variant)
    ours.load_state_dict(reference.state_dict(), strict=True)
    x, k, cond = inputs(horizon=16)
    torch.testing.assert_close(ours(x, k, cond), reference(x, k, cond), atol=1e-4, rtol=1e-4)


def test_the_papers_networks_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        encoder = ResNetEncoder({"image": (3, 96, 96), "agent_pos": (2,)})
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
    torch.testing.assert_close(embedding[1], SinusoidalPosEmb(8)(torch.tensor([7]))[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"kernel_size": 4}, "kernel_size"),
        ({"channels": (16, 20)}, "n_groups"),
        ({"channels": (16, 32), "skip": "add"}, "skip"),
    ],
)
def test_bad_arguments_are_refused_by_name(bad: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        UNet1d(2, 12, **bad)
