"""A learned critic: what plans will cost, from what the policy sees."""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dp.types import Situation

log = logging.getLogger(__name__)

FORMAT = "dp-critic-1"

FILE = "critic.safetensors"


class ValueNetwork(nn.Module):
    """Predicts what is left to do after a plan, a residual network over features and plan.

    It takes the features in which the policy's own encoder sees a situation, so it needs no encoder and no true state.
    Statistics of its training data, which `standardize_with` measures, are buffers.

    Args:
        cond_dim, plan_dim: To * Do and T * Da.
        width, depth: features of a layer, and number of residual blocks.
    """

    def __init__(self, cond_dim: int, plan_dim: int, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(cond_dim + plan_dim, width)
        self.blocks = nn.ModuleList(_block(width) for _ in range(depth))
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        for name, size in (("cond", cond_dim), ("plan", plan_dim), ("cost", 1)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    def standardize_with(
        self, cond: Float[Tensor, "S To Do"], plans: Float[Tensor, "S n T Da"], costs: Float[Tensor, "S n"]
    ) -> None:
        """Measures the data that it will be trained on. Unknown costs are nan."""
        for name, values in (("cond", cond.flatten(1)), ("plan", plans.flatten(2).flatten(0, 1))):
            self.get_buffer(f"{name}_mean").copy_(values.mean(0))
            self.get_buffer(f"{name}_std").copy_(values.std(0).clamp(min=1e-3))
        known = costs[~costs.isnan()]
        self.get_buffer("cost_mean").fill_(known.mean())
        self.get_buffer("cost_std").fill_(known.std().clamp(min=1e-3))

    def _standard(self, name: str, values: Tensor) -> Tensor:
        return (values - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_std")

    def _standard_costs(self, cond: Float[Tensor, "S To Do"], plans: Float[Tensor, "S n T Da"]) -> Tensor:
        seen = self._standard("cond", cond.flatten(1))[:, None].expand(-1, plans.shape[1], -1)
        hidden = self.first(torch.cat([seen, self._standard("plan", plans.flatten(2))], dim=-1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden)[..., 0]

    def forward(self, cond: Float[Tensor, "S To Do"], plans: Float[Tensor, "S n T Da"]) -> Float[Tensor, "S n"]:
        """The costs of n plans in each of S situations, in the unit of the costs that it was trained on."""
        return self._standard_costs(cond, plans) * self.get_buffer("cost_std") + self.get_buffer("cost_mean")

    def loss(
        self, cond: Float[Tensor, "S To Do"], plans: Float[Tensor, "S n T Da"], costs: Float[Tensor, "S n"]
    ) -> Float[Tensor, ""]:
        """Mean squared error of the costs, a third, and of their differences within a situation, which decide.

        Unknown costs are nan and do not count.
        """
        known = ~costs.isnan()
        error = torch.where(known, self._standard_costs(cond, plans) - self._standard("cost", costs), 0.0)
        n_known = known.sum(1, keepdim=True)
        among = torch.where(known & (n_known > 1), error - error.sum(1, keepdim=True) / n_known.clamp(min=1), 0.0)
        return (error.square().sum() / 3 + among.square().sum()) / known.sum().clamp(min=1)

    def check(self) -> None:
        """Raises ValueError for weights or statistics that no training on real costs gives."""
        for name, tensor in self.state_dict().items():
            if not tensor.isfinite().all() or (name.endswith("_std") and not (tensor > 0).all()):
                raise ValueError(f"{name} has values that are not finite, or deviations that are not positive")

    def to_bytes(self, view: str, policy: str) -> bytes:
        """The network as safetensors. view, policy: `view_of` and `digest_of` the policy whose plans it was trained
        on."""
        return save(
            {name: tensor.contiguous() for name, tensor in self.state_dict().items()},
            {"format": FORMAT, "view": view, "policy": policy},
        )


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))


class Value:
    """The critic in a file that `workspace=critic` wrote.

    Args:
        path: the file, or the directory of the run that wrote it.

    Raises:
        ValueError: if there is no such file, or it holds no critic.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser() / FILE if path.expanduser().is_dir() else path.expanduser()
        self.network, self._told = _read(self.path)
        self._fits: Any = None

    def costs(self, plans: Float[np.ndarray, "n T Da"], situation: Situation) -> Float[np.ndarray, " n"]:
        assert situation.cond is not None
        with torch.no_grad():
            return np.asarray(self.network(situation.cond[None].cpu(), torch.from_numpy(plans)[None])[0])

    def check(self, policy: Any) -> None:
        """Raises ValueError if `policy` sees situations in other features than those of the critic's training. Warns if
        it is another policy."""
        if policy is self._fits:
            return
        sees = policy.n_obs_steps * policy.encoder.out_dim
        if self._told.get("view") != view_of(policy) or len(self.network.get_buffer("cond_mean")) != sees:
            raise ValueError(
                f"the critic {self.path} was trained on what another policy's encoder sees. Train one for this policy: "
                "python run.py workspace=critic checkpoint=PATH"
            )
        if self._told.get("policy") != digest_of(policy):
            log.warning("the critic %s was trained on the plans of another policy, which saw the same", self.path)
        self._fits = policy


def view_of(policy: Any) -> str:
    """Digest of all in a `DiffusionPolicy` that turns raw observations into features, and of the size of plans.

    Policies with the same one share critics.
    """
    sizes = (policy.n_obs_steps, policy.horizon, policy.action_dim)
    return digest_of(policy.encoder, policy.normalizer, about=repr(sizes))


def digest_of(*parts: nn.Module, about: str = "") -> str:
    """SHA-256 of all weights and buffers of networks."""
    digest = hashlib.sha256(about.encode())
    for part in parts:
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[ValueNetwork, dict[str, str]]:
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{path} is not a file. Expected the directory of a workspace=critic, or its {FILE}")
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            weights = {name: file.get_tensor(name).float().clone() for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ValueError(
            f"there is no critic {path}. Train one: python run.py workspace=critic checkpoint=PATH"
        ) from None
    except (SafetensorError, OSError) as error:
        raise ValueError(_damaged(path, error)) from None
    if told.get("format") != FORMAT:
        raise ValueError(f"{path} is no critic: expected a file that workspace=critic wrote")
    try:
        width, n_inputs = weights["first.weight"].shape
        n_blocks = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
        with torch.device("meta"):  # takes no memory, whatever a damaged file asks for
            network = ValueNetwork(len(weights["cond_mean"]), n_inputs - len(weights["cond_mean"]), width, n_blocks)
        network.load_state_dict(weights, assign=True)
        network.check()
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(_damaged(path, error)) from None
    return network.eval(), told


def _damaged(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return (
        f"{path} is damaged or no critic: {reason:.200}. Train it anew: delete it, and repeat the command of its "
        "workspace=critic"
    )
