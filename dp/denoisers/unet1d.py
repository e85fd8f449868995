"""The conditional 1-d UNet of Diffusion Policy and its compact relatives: one class, the choices as arguments."""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import torch
import torch.nn.functional as F
from annotated_types import Interval, MultipleOf
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dp.denoisers.embedding import SinusoidalEmbedding
from dp.kernels import ConcatLinear, Conv1d, ConvTranspose1d, GroupNorm, Mish, memoize
from dp.limits import Width, Widths

Norm = Literal["group", "layer"]
Film = Literal["scale_bias", "residual", "bias"]
Merge = Literal["concat", "add"]

LAST_GROUPS = 8
"""Groups of the last block's GroupNorm, whatever `n_groups` is, as in the reference implementation."""


class UNet1d(nn.Module):
    """Predicts from a noisy action sequence what `prediction_type` asks for (Chi et al. 2023, section III.A).

    The defaults are the paper's network; parameter names follow the reference `ConditionalUnet1D`, whose weights load.
    Any horizon works: the sequence is padded with zeros at its end to a multiple of the total stride, and cut again.

    Args:
        action_dim: Da.
        cond_dim: C = To * Do, the width of the flattened observation condition.
        channels: width of each level; each level below the first halves the length.
        kernel_size: of the residual blocks' convolutions; odd.
        step_embed_dim: width of the embedding of a time; even, at least 4.
        n_groups: groups of GroupNorm.
        norm: "group" (over the whole sequence) or "layer" (each timestep for itself; faster on a CPU).
        film: "scale_bias" h * s + b (paper), "residual" h * (1 + s) + b, which starts near the identity, or "bias"
            h + b (the reference implementation's `cond_predict_scale=False`).
        cond_merge: step embedding and condition meet by "concat" (paper), or by "add" after projecting the condition.
        skip: the skip connections meet the decoder by "concat" (paper), or by "add", which needs constant width.
        n_times: times that the objective gives with every sample. The embeddings of two are added.

    Raises:
        ValueError: naming the argument, for an unknown choice, widths that do not divide into the groups, an even
            kernel, "add" skips of unequal width, or a step embedding that is odd or too narrow.
    """

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        channels: Widths = (512, 1024, 2048),
        kernel_size: Annotated[int, Interval(ge=1, le=255)] = 5,
        step_embed_dim: Annotated[int, Interval(ge=4, le=65_536), MultipleOf(2)] = 128,
        n_groups: Width = 8,
        norm: Norm = "group",
        film: Film = "scale_bias",
        cond_merge: Merge = "concat",
        skip: Merge = "concat",
        n_times: int = 1,
    ) -> None:
        super().__init__()
        _check_choice("norm", norm, Norm)
        _check_choice("film", film, Film)
        _check_choice("cond_merge", cond_merge, Merge)
        _check_choice("skip", skip, Merge)
        _check_sizes(channels, kernel_size, step_embed_dim, n_groups, n_times)
        if norm == "group":
            _check_groups(channels, n_groups)
        if skip == "add" and len(set(channels)) > 1:
            raise ValueError(f"skip=add needs levels of one width, got channels={list(channels)}: use skip=concat")

        self.stride = 2 ** (len(channels) - 1)
        self.cond_merge, self.skip = cond_merge, skip
        self.diffusion_step_encoder = _step_encoder(step_embed_dim)
        self.cond_projection = nn.Linear(cond_dim, step_embed_dim) if cond_merge == "add" else nn.Identity()
        self.mish = Mish()
        film_dims = (step_embed_dim, 0 if cond_merge == "add" else cond_dim)

        def block(inputs: int, outputs: int) -> FilmResidualBlock:
            return FilmResidualBlock(inputs, outputs, film_dims, kernel_size, n_groups, norm, film)

        self.down_modules = nn.ModuleList()
        for level, (inputs, outputs) in enumerate(zip([action_dim, *channels], channels, strict=False)):
            last = level == len(channels) - 1
            down = nn.Identity() if last else _named_conv(Conv1d(outputs, outputs, 3, stride=2, padding=1))
            self.down_modules.append(nn.ModuleList([block(inputs, outputs), block(outputs, outputs), down]))
        self.mid_modules = nn.ModuleList([block(channels[-1], channels[-1]) for _ in range(2)])
        self.up_modules = nn.ModuleList()
        for outputs, inputs in reversed(list(itertools.pairwise(channels))):
            merged = inputs if skip == "add" else 2 * inputs
            blocks = [block(merged, outputs), block(outputs, outputs)]
            up = _named_conv(ConvTranspose1d(outputs, outputs, 4, stride=2, padding=1))
            self.up_modules.append(nn.ModuleList([*blocks, up]))
        self.final_conv = nn.Sequential(
            ConvBlock(channels[0], channels[0], kernel_size, LAST_GROUPS, norm), Conv1d(channels[0], action_dim, 1)
        )
        # Last, so that a seed draws the same weights for all other layers whatever `n_times` is.
        self.more_step_encoders = nn.ModuleList([_step_encoder(step_embed_dim) for _ in range(n_times - 1)])

    def forward(
        self, x: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B n"], cond: Float[Tensor, "B To Do"]
    ) -> Float[Tensor, "B H Da"]:
        horizon = x.shape[1]
        step, cond = self._embedding(t), memoize(_flat, cond)
        if self.cond_merge == "add":
            step, cond = step + memoize(self.cond_projection, cond), memoize(_nothing_of, cond)
        film = self.mish(step), memoize(self.mish, cond)

        h = F.pad(x, (0, 0, 0, -horizon % self.stride)).transpose(0, 1)  # (L, B, C) from here on
        # Down, through the middle, and up again, where each level meets its skip connection.
        skips = []
        for level in self.down_modules:
            first, second, down = level.children()
            h = second(first(h, film), film)
            skips.append(h)
            h = down(h)
        for block in self.mid_modules:
            h = block(h, film)
        for level in self.up_modules:
            first, second, up = level.children()
            skipped = skips.pop()
            h = h + skipped if self.skip == "add" else torch.cat([h, skipped], dim=-1)
            h = up(second(first(h, film), film))
        return self.final_conv(h).transpose(0, 1)[:, :horizon]

    def _embedding(self, t: Shaped[Tensor, "B n"]) -> Float[Tensor, "B S"]:
        """The sum of the embeddings of all times of a sample."""
        step = self.diffusion_step_encoder(t[:, 0])
        for encoder, time in zip(self.more_step_encoders, t[:, 1:].unbind(1), strict=True):
            step = step + encoder(time)
        return step


def _check_choice(name: str, given: str, choices: object) -> None:
    expected = get_args(choices)
    if given not in expected:
        raise ValueError(f"{name}={given}, expected {' or '.join(expected)}")


def _check_sizes(channels: Sequence[int], kernel_size: int, step_embed_dim: int, n_groups: int, n_times: int) -> None:
    if not channels or any(width < 1 for width in channels):
        raise ValueError(f"channels={list(channels)}, expected a width of at least 1 for each of one or more levels")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size={kernel_size}, expected an odd number of at least 1")
    if step_embed_dim < 4 or step_embed_dim % 2:
        raise ValueError(f"step_embed_dim={step_embed_dim}, expected an even number of at least 4")
    if n_groups < 1:
        raise ValueError(f"n_groups={n_groups}, expected at least 1")
    if n_times not in (1, 2):
        raise ValueError(f"n_times={n_times}, expected 1 or 2 (times that the objective gives)")


def _check_groups(channels: Sequence[int], n_groups: int) -> None:
    if any(width % n_groups for width in channels):
        raise ValueError(f"channels={list(channels)}, expected multiples of n_groups={n_groups}, or norm=layer")
    if channels[0] % LAST_GROUPS:
        raise ValueError(
            f"channels={list(channels)}, expected the first to be a multiple of {LAST_GROUPS}, the groups of the last "
            "block, or norm=layer"
        )


def _step_encoder(dim: int) -> nn.Sequential:
    return nn.Sequential(SinusoidalEmbedding(dim), nn.Linear(dim, dim * 4), Mish(), nn.Linear(dim * 4, dim))


def _flat(cond: Float[Tensor, "B To Do"]) -> Float[Tensor, "B C"]:
    return cond.flatten(1)


def _nothing_of(cond: Float[Tensor, "B C"]) -> Float[Tensor, "B 0"]:
    return cond[:, :0]


def _named_conv(conv: nn.Module) -> nn.Sequential:
    """`conv` under the name that the reference implementation gives it."""
    return nn.Sequential(OrderedDict(conv=conv))


class ConvBlock(nn.Module):
    """Convolution, normalisation, Mish."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, n_groups: int, norm: Norm) -> None:
        super().__init__()
        normalise = GroupNorm(n_groups, outputs) if norm == "group" else nn.LayerNorm(outputs)
        self.block = nn.Sequential(Conv1d(inputs, outputs, kernel_size, padding=kernel_size // 2), normalise, Mish())

    def forward(self, x: Float[Tensor, "L B Cin"]) -> Float[Tensor, "L B Cout"]:
        return self.block(x)


class FilmResidualBlock(nn.Module):
    """Two convolution blocks with a residual; feature-wise linear modulation (Perez et al. 2018) between them."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        film_dims: tuple[int, int],
        kernel_size: int,
        n_groups: int,
        norm: Norm,
        film: Film,
    ) -> None:
        super().__init__()
        self.film = film
        self.blocks = nn.ModuleList(
            [
                ConvBlock(inputs, outputs, kernel_size, n_groups, norm),
                ConvBlock(outputs, outputs, kernel_size, n_groups, norm),
            ]
        )
        # The Mish before this layer is the same for every block: `UNet1d.forward` applies it once. The name's index
        # is the reference implementation's.
        n_parts = 1 if film == "bias" else 2
        self.cond_encoder = nn.ModuleDict({"1": ConcatLinear(*film_dims, n_parts * outputs)})
        self.residual_conv = Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(
        self, x: Float[Tensor, "L B Cin"], film: tuple[Float[Tensor, "B S"], Float[Tensor, "B C"]]
    ) -> Float[Tensor, "L B Cout"]:
        modulation = self.cond_encoder["1"](*film)  # (B, Cout), or twice that
        if self.film == "bias":
            return self.blocks[1](self.blocks[0](x) + modulation) + self.residual_conv(x)
        scale, bias = modulation.chunk(2, dim=-1)  # (B, Cout) each
        if self.film == "residual":
            scale = 1 + scale
        return self.blocks[1](self.blocks[0](x) * scale + bias) + self.residual_conv(x)
