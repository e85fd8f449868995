"""The transformer of Diffusion Policy (Chi et al. 2023, section III.A and appendix D.1), "DP-T"."""

from typing import Annotated, Any

import torch
from annotated_types import Interval
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dp.denoisers.embedding import SinusoidalEmbedding, check_width
from dp.limits import Dropout, Width

INIT_STD = 0.02
"""Standard deviation of initial weights, as in minGPT."""


class Transformer(nn.Module):
    """Action tokens attend to themselves and to tokens of time and observations, in a decoder with norms first.

    With `causal` attention, an action sees earlier actions and the observations up to its own step. Parameter names
    follow the reference `TransformerForDiffusion`, whose weights load.

    Args:
        action_dim: Da.
        obs_dim: Do.
        horizon, n_obs_steps: H, To.
        width: of a token; even, a multiple of `n_heads`.
        n_layers, n_heads: of the decoder.
        n_cond_layers: of an encoder over the condition's tokens; 0: each token passes a perceptron instead.
        dropout, embed_dropout: within the layers, and of all tokens before them.
        causal: as above; otherwise everything sees everything.
        n_times: times that the objective gives with every sample, a token each.

    Raises:
        ValueError: for a width that is odd or no multiple of `n_heads`.
    """

    def __init__(
        self,
        action_dim: int,
        obs_dim: int,
        horizon: int,
        n_obs_steps: int,
        width: Width = 256,
        n_layers: Width = 8,
        n_heads: Width = 4,
        n_cond_layers: Annotated[int, Interval(ge=0, le=1000)] = 0,
        dropout: Dropout = 0.3,
        embed_dropout: Dropout = 0.0,
        causal: bool = True,
        n_times: int = 1,
    ) -> None:
        super().__init__()
        check_width(width, n_heads)
        n_cond = n_times + n_obs_steps
        layer: dict[str, Any] = {"dropout": dropout, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.input_emb = nn.Linear(action_dim, width)
        self.pos_emb = nn.Parameter(torch.zeros(1, horizon, width))
        self.drop = nn.Dropout(embed_dropout)
        self.time_emb = SinusoidalEmbedding(width)
        self.cond_obs_emb = nn.Linear(obs_dim, width)
        self.cond_pos_emb = nn.Parameter(torch.zeros(1, n_cond, width))
        self.encoder: nn.Module = (
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(width, n_heads, 4 * width, **layer),
                n_cond_layers,
                enable_nested_tensor=False,
            )
            if n_cond_layers
            else nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(width, n_heads, 4 * width, **layer), n_layers)
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, action_dim)
        steps = torch.arange(horizon)[:, None]
        mask = _additive(steps >= torch.arange(horizon)) if causal else None
        self.register_buffer("mask", mask, persistent=False)
        seen = steps >= torch.arange(n_cond) - n_times  # the tokens of times come first
        self.register_buffer("memory_mask", _additive(seen) if causal else None, persistent=False)
        self.apply(_initialise)
        for positions in (self.pos_emb, self.cond_pos_emb):
            nn.init.normal_(positions, std=INIT_STD)

    def forward(
        self, x: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B n"], cond: Float[Tensor, "B To Do"]
    ) -> Float[Tensor, "B H Da"]:
        times = self.time_emb(t.flatten()).unflatten(0, t.shape).to(cond.dtype)
        memory = torch.cat([times, self.cond_obs_emb(cond)], dim=1)
        memory = self.encoder(self.drop(memory + self.cond_pos_emb))
        tokens = self.drop(self.input_emb(x) + self.pos_emb)
        mask, memory_mask = self.get_buffer("mask"), self.get_buffer("memory_mask")
        causal = mask is not None  # otherwise torch reads the mask back from the device to find out
        decoded = self.decoder(tokens, memory, tgt_mask=mask, memory_mask=memory_mask, tgt_is_causal=causal)
        return self.head(self.ln_f(decoded))


def _additive(seen: Tensor) -> Float[Tensor, "T S"]:
    return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=INIT_STD)
        nn.init.zeros_(module.in_proj_bias)
