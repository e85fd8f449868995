"""The configuration in a checkpoint of the paper's code: the fields on which the actions of its policy depend."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from workspaces.importers.reference.inert import Inert
from workspaces.schema import Maybe, Range, Schema, check, fits
from workspaces.trust import MAX_DEPTH, MAX_VALUES

_SIZE = Range(1, 2**16)
_SHARE = Range(0, 1, whole=False)
_BETA = _SHARE

SCHEDULER: Schema = {
    "_target_": frozenset(
        f"diffusers.schedulers.scheduling_{name.lower()}.{name}Scheduler" for name in ("DDPM", "DDIM")
    ),
    "num_train_timesteps": Range(1, 10_000),
    "beta_schedule": str,
    "beta_start": _BETA,
    "beta_end": _BETA,
    "clip_sample": bool,
    "prediction_type": frozenset({"epsilon", "sample"}),
    "variance_type": Maybe(str, null=False),
    "set_alpha_to_one": Maybe(bool, null=False),
    "steps_offset": Maybe(Range(0, 10_000), null=False),
}
COMMON: Schema = {
    "noise_scheduler": SCHEDULER,
    "horizon": Range(1, 4096),
    "n_obs_steps": Range(1, 4096),
    "n_action_steps": Range(1, 4096),
    "num_inference_steps": Maybe(Range(1, 10_000)),
}
UNET: Schema = {
    "down_dims": [_SIZE],
    "diffusion_step_embed_dim": Range(4, 2**16),
    "kernel_size": Range(1, 255),
    "n_groups": _SIZE,
    "cond_predict_scale": bool,
}
TRANSFORMER: Schema = {
    "n_layer": Range(1, 64),
    "n_cond_layers": Range(0, 64),
    "n_head": _SIZE,
    "n_emb": _SIZE,
    "p_drop_emb": _SHARE,
    "p_drop_attn": _SHARE,
    "causal_attn": bool,
}
_OBS = {"shape": [_SIZE], "type": Maybe(frozenset({"rgb", "low_dim"}), null=False)}
IMAGE: Schema = {
    "shape_meta": {"obs": {str: _OBS}, "action": {"shape": [_SIZE]}},
    "crop_shape": Maybe([_SIZE]),
    "obs_encoder_group_norm": bool,
}
LOW_DIM: Schema = {"obs_dim": _SIZE, "action_dim": _SIZE}

FIXED = {
    "obs_as_global_cond": True, "obs_as_local_cond": False, "oa_step_convention": True, "pred_action_steps_only": False,
    "eval_fixed_crop": True, "time_as_cond": True, "obs_as_cond": True, "local_cond_dim": None,
}  # fmt: skip
"""Fields with the only value that means what is computed here."""

UNUSED = frozenset({"_target_", "model", "input_dim", "output_dim", "global_cond_dim", "cond_dim"})
"""Fields that follow from others."""


class Kind(NamedTuple):
    """One of the four policies: fields on which its actions depend, and its constructor's defaults."""

    used: Schema
    defaults: Mapping[str, Any]


_UNET = {"diffusion_step_embed_dim": 256, "down_dims": [256, 512, 1024], "n_groups": 8, "num_inference_steps": None}
_IMAGE = {
    "crop_shape": [76, 76], "obs_encoder_group_norm": False, "eval_fixed_crop": False, "num_inference_steps": None,
}  # fmt: skip

KINDS = {
    "diffusion_unet_hybrid_image_policy.DiffusionUnetHybridImagePolicy": Kind(
        COMMON | UNET | IMAGE, {**_UNET, **_IMAGE, "kernel_size": 5, "cond_predict_scale": True}
    ),
    "diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy": Kind(
        COMMON | UNET | LOW_DIM,
        {**_UNET, "kernel_size": 3, "cond_predict_scale": False, "obs_as_global_cond": False,
         "oa_step_convention": False},
    ),
    "diffusion_transformer_hybrid_image_policy.DiffusionTransformerHybridImagePolicy": Kind(
        COMMON | TRANSFORMER | IMAGE,
        {**_IMAGE, "n_layer": 8, "n_cond_layers": 0, "n_head": 4, "n_emb": 256, "p_drop_emb": 0.0, "p_drop_attn": 0.3,
         "causal_attn": True},
    ),
    "diffusion_transformer_lowdim_policy.DiffusionTransformerLowdimPolicy": Kind(
        COMMON | TRANSFORMER | LOW_DIM,
        {"n_layer": 12, "n_cond_layers": 0, "n_head": 12, "n_emb": 768, "p_drop_emb": 0.1, "p_drop_attn": 0.1,
         "causal_attn": False, "obs_as_cond": False, "num_inference_steps": None},
    ),
}  # fmt: skip
"""Class of a policy, in `diffusion_policy.policy`."""


def read_settings(payload: Any) -> dict[str, Any]:
    """The fields of the policy in a checkpoint, those of its network among them, and the `seed` of its training.

    Raises ValueError for a policy or a field that is wrong, missing or unknown, naming it.
    """
    if not isinstance(payload, dict) or not {"cfg", "state_dicts"} <= payload.keys():
        raise ValueError("it lacks cfg or state_dicts")
    config = _plain(payload["cfg"])
    check(config, {"policy": {"_target_": str, "model": Maybe(dict, null=False)}}, "its configuration")
    policy = config["policy"]
    kind = KINDS.get(policy["_target_"].removeprefix("diffusion_policy.policy."))
    if kind is None:
        names = ", ".join(name.rpartition(".")[2] for name in KINDS)
        raise ValueError(f"its policy is {policy['_target_']:.100}, expected one of {names}")
    settings = _resolved({**kind.defaults, **policy.get("model", {}), **policy}, config)
    if unknown := sorted(settings.keys() - kind.used.keys() - FIXED.keys() - UNUSED):
        shown = f"{unknown[0]:.60}={settings[unknown[0]]!r:.60}"
        raise ValueError(f"its policy has {shown}, a field that is not known here")
    for key, only in FIXED.items():
        if settings.get(key, only) != only:
            raise ValueError(f"its policy has {key}={settings[key]!r:.60}, expected {only}: dp computes nothing else")
    check(settings, kind.used, "its policy")
    if unknown := sorted(settings["noise_scheduler"].keys() - SCHEDULER.keys()):
        raise ValueError(f"its policy has noise_scheduler.{unknown[0]:.60}, a field that is not known here")
    seeded = fits(config, {"training": {"seed": Range(0, 2**63 - 1)}})
    return {**settings, "seed": config["training"]["seed"] if seeded else 0}


def _plain(config: Any) -> Any:
    """OmegaConf's containers as plain ones. Raises ValueError for anything else in them, or too much of it."""
    left = [MAX_VALUES]

    def plain(node: Any, depth: int) -> Any:
        left[0] -= 1
        if depth > MAX_DEPTH or left[0] < 0:
            raise ValueError("its configuration is nested or repeated too far")
        if isinstance(node, Inert):
            state = node.state if node.kind.startswith("omegaconf.") else None
            if not isinstance(state, dict) or not {"_val", "_content"} & state.keys():
                raise ValueError(f"its configuration has a {node.kind:.60}, expected a container of OmegaConf")
            return plain(state["_val"] if "_val" in state else state["_content"], depth + 1)
        if type(node) is dict:
            return {key: plain(value, depth + 1) for key, value in node.items() if type(key) is str}
        if type(node) in (list, tuple):
            return [plain(value, depth + 1) for value in node]
        if type(node) is int and node.bit_length() > 64:
            raise ValueError(f"its configuration has a whole number of {node.bit_length()} bits")
        if type(node) not in (str, int, float, bool, type(None)):
            raise ValueError(f"its configuration has a {type(node).__name__:.60}, expected plain values")
        return node

    return plain(config, 0)


def _resolved(settings: Any, config: Mapping[str, Any]) -> Any:
    """`settings` with every `${key}` replaced by what `config` has there, as far as there are any: the paper's code
    resolves its configuration before it saves it. Raises ValueError for one that leads nowhere."""
    left = [MAX_VALUES]

    def resolved(value: Any, depth: int) -> Any:
        left[0] -= 1
        if depth > MAX_DEPTH or left[0] < 0:
            raise ValueError("its configuration refers to itself, or too often")
        if isinstance(value, dict):
            return {key: resolved(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list):
            return [resolved(inner, depth + 1) for inner in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        return resolved(_at(config, value), depth + 1)

    return resolved(settings, 0)


def _at(config: Mapping[str, Any], reference: str) -> Any:
    named = re.fullmatch(r"\$\{([\w.]+)\}", reference)
    node: Any = config if named else None
    for key in named[1].split(".") if named else ():
        node = node.get(key) if isinstance(node, dict) else None
    if node is None:
        raise ValueError(f"its configuration has {reference!r:.60}, expected a value")
    return node
