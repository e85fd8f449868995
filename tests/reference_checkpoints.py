"""Writes policies of ours as the paper's code (real-stanford/diffusion_policy) writes its own.

    PYTHONPATH=. python tests/reference_checkpoints.py tests/data/reference          (pip install dill)

writes `unet_lowdim.ckpt` with dill, as that code does. Tests write others with pickle, which differs in nothing that is
read.
"""

import pickle
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from dp.policy import DiffusionPolicy

SCHEDULER = {
    "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler", "num_train_timesteps": 100, "beta_start": 0.0001,
    "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2", "variance_type": "fixed_small", "clip_sample": True,
    "prediction_type": "epsilon",
}  # fmt: skip
TIMES = {"horizon": 8, "n_obs_steps": 2, "n_action_steps": 4, "num_inference_steps": 10, "noise_scheduler": SCHEDULER}
UNET = {
    "diffusion_step_embed_dim": 16, "down_dims": [16, 32], "kernel_size": 5, "n_groups": 8, "cond_predict_scale": True,
}  # fmt: skip
TRANSFORMER = {
    "n_layer": 2, "n_cond_layers": 0, "n_head": 4, "n_emb": 32, "p_drop_emb": 0.0, "p_drop_attn": 0.3,
    "causal_attn": True, "time_as_cond": True, "obs_as_cond": True,
}  # fmt: skip
IMAGE = {
    "shape_meta": {
        "obs": {"image": {"shape": [3, 96, 96], "type": "rgb"}, "agent_pos": {"shape": [2], "type": "low_dim"}},
        "action": {"shape": [2]},
    },
    "crop_shape": [84, 84], "obs_encoder_group_norm": True, "eval_fixed_crop": True,
}  # fmt: skip
LOW_DIM = {"obs_dim": 20, "action_dim": 2, "pred_action_steps_only": False}
POLICIES = "diffusion_policy.policy."
NETWORKS = "diffusion_policy.model.diffusion."

CONFIGS: dict[str, dict[str, Any]] = {
    "unet_image": {
        "_target_": f"{POLICIES}diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy",
        **TIMES, **IMAGE, **UNET, "obs_as_global_cond": True,
    },
    "unet_lowdim": {
        "_target_": f"{POLICIES}diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy",
        "model": {
            "_target_": f"{NETWORKS}conditional_unet1d.ConditionalUnet1D", "input_dim": 2, "local_cond_dim": None,
            "global_cond_dim": 40, **UNET,
        },
        **TIMES, **LOW_DIM, "obs_as_local_cond": False, "obs_as_global_cond": True, "oa_step_convention": True,
    },
    "transformer_image": {
        "_target_": f"{POLICIES}diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy",
        **TIMES, **IMAGE, **TRANSFORMER,
    },
    "transformer_lowdim": {
        "_target_": f"{POLICIES}diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy",
        "model": {
            "_target_": f"{NETWORKS}transformer_for_diffusion.TransformerForDiffusion", "input_dim": 2, "output_dim": 2,
            "horizon": 8, "n_obs_steps": 2, "cond_dim": 20, **TRANSFORMER,
        },
        **TIMES, **LOW_DIM, "obs_as_cond": True,
    },
}  # fmt: skip


def entries(policy: DiffusionPolicy) -> dict[str, Tensor]:
    """The state dict of the paper's policy that computes what `policy` does, without the normalisation."""
    theirs: dict[str, Tensor] = {"_dummy_variable": torch.zeros(0), "mask_generator._dummy_variable": torch.zeros(0)}
    for name, tensor in policy.state_dict().items():
        if name.startswith("denoiser."):
            theirs[name.replace("denoiser.", "model.", 1)] = tensor
        elif found := re.fullmatch(r"encoder\.backbones\.(\w+)\.(0|1\.0\.heatmaps|1\.1)\.(.+)", name):
            camera, layer, rest = found.groups()
            theirs[f"obs_encoder.obs_nets.{camera}.nets.{_layer(layer)}.{rest}"] = tensor
            if layer == "0":
                theirs[f"obs_encoder.obs_nets.{camera}.backbone.nets.{rest}"] = tensor
            for other, value in (("pos_x", torch.zeros(9)), ("pos_y", torch.zeros(9)), ("temperature", torch.ones(1))):
                theirs[f"obs_encoder.obs_nets.{camera}.nets.1.{other}"] = value
    for name in ("mask", "memory_mask"):
        if hasattr(policy.denoiser, name):
            theirs[f"model.{name}"] = policy.denoiser.get_buffer(name)
    return theirs


def _layer(ours: str) -> str:
    return {"0": "0.nets", "1.0.heatmaps": "1.nets", "1.1": "3"}[ours]


def linear(name: str, scale: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """The normalisation of an observation or of the action."""
    stats = {f"input_stats.{kind}": torch.zeros_like(scale) for kind in ("min", "max", "mean", "std")}
    parts = {"scale": scale, "offset": offset, **stats}
    return {f"normalizer.params_dict.{name}.{key}": value for key, value in parts.items()}


def write(path: Path, config: dict[str, Any], weights: dict[str, Tensor], module: ModuleType = pickle) -> None:
    """A checkpoint as `BaseWorkspace.save_checkpoint` writes it, resolved but for one interpolation."""
    whole = OmegaConf.create(
        {"_target_": "diffusion_policy.workspace.Some", "horizon": config["horizon"], "training": {"seed": 42},
         "policy": {**config, "horizon": "${horizon}"}}
    )  # fmt: skip
    parameters = {name: torch.nn.Parameter(value) for name, value in weights.items() if value.is_floating_point()}
    optimizer = torch.optim.AdamW(list(parameters.values())[:3])
    payload = {
        "cfg": whole,
        "state_dicts": {
            "model": {name: torch.zeros(1) for name in weights}, "ema_model": weights,
            "optimizer": optimizer.state_dict(),
        },
        "pickles": {"global_step": module.dumps(1234), "epoch": module.dumps(7), "_output_dir": module.dumps("/x/y")},
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        torch.save(payload, file, pickle_module=module)


if __name__ == "__main__":
    import dill

    from dp.denoisers import UNet1d

    torch.manual_seed(0)
    network = UNet1d(2, 40, (8, 16), 3, 8, 8)
    scale, offset = torch.cat([torch.full((18,), 1 / 200), torch.full((2,), 1 / 256)]), torch.full((20,), -1.0)
    weights = {
        **{f"model.{name}": value for name, value in network.state_dict().items()},
        **linear("obs", scale, offset),
        **linear("action", torch.full((2,), 1 / 256), torch.full((2,), -1.0)),
        "_dummy_variable": torch.zeros(0),
    }
    settings = CONFIGS["unet_lowdim"]
    sizes = {"down_dims": [8, 16], "kernel_size": 3, "diffusion_step_embed_dim": 8}
    settings = {**settings, "model": {**settings["model"], **sizes}}
    write(Path(sys.argv[1]) / "unet_lowdim.ckpt", settings, weights, dill)
