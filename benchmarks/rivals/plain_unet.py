"""The conditional UNet as it is usually written: (B, C, L), `nn.Conv1d`, a Mish in every block.

A rival here, and in the tests what `dp.denoisers.UNet1d` is compared with.
"""

import math

import torch
from torch import Tensor, nn


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
        rates = torch.exp(torch.arange(half, device=k.device) * (-math.log(10_000) / (half - 1)))
        angles = k[:, None] * rates
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class PlainUNet1d(nn.Module):
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
