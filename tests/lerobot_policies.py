"""Writes the policies of `tests/data/lerobot` and the actions that LeRobot computes with them.

    LEROBOT_PYTHON tests/lerobot_policies.py tests/data/lerobot          (lerobot==0.4.4)

Everything but the weights of a ResNet is what the package itself wrote. A ResNet-18 is too large to commit, so policies
with images have `shapes.json` instead of `model.safetensors`: names and shapes, which `filled` turns into weights. With
`--whole`, every policy has its own random weights.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

STEPS = 16
"""Evaluations of the denoiser, by DDIM."""

MAIN = {"gradient_checkpointing": False, "pretrained_revision": None}
"""Fields that the development version of LeRobot (0.6) adds to `config.json`."""

SMALL = {
    "horizon": 8, "n_action_steps": 4, "down_dims": (16, 32), "diffusion_step_embed_dim": 16, "drop_n_last_frames": 3,
    "noise_scheduler_type": "DDIM", "num_inference_steps": STEPS, "device": "cpu",
}  # fmt: skip

CASES = {
    "state": {"observation.state": (2,), "observation.environment_state": (16,)},
    "image": {"observation.image": (3, 96, 96), "observation.state": (2,)},
    "cameras": {
        "observation.images.top": (3, 60, 80), "observation.state": (3,), "observation.images.wrist": (3, 60, 80),
        "observation.environment_state": (2,),
    },
    "shared": {"observation.images.a": (3, 48, 64), "observation.images.b": (3, 48, 64), "observation.state": (3,)},
}  # fmt: skip
"""Name -> shapes of the observations."""

SETTINGS = {
    "state": {},
    "image": {"crop_shape": (84, 84)},
    "cameras": {
        "use_group_norm": False, "use_separate_rgb_encoder_per_camera": True, "use_film_scale_modulation": False,
        "resize_shape": (72, 96), "crop_ratio": 0.75, "prediction_type": "sample", "kernel_size": 3,
        "spatial_softmax_num_keypoints": 8,
        "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ENV": "QUANTILES", "ACTION": "MIN_MAX"},
    },
    "shared": {"normalization_mapping": {"VISUAL": "MIN_MAX", "STATE": "IDENTITY", "ACTION": "MEAN_STD"}},
}  # fmt: skip


def filled(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights that depend on their names alone, of a scale that keeps activations alive."""
    weights = {}
    for name, shape in shapes.items():
        numbers = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
        values = numbers * (3 / fan_in) ** 0.5 if fan_in > 1 else 0.5 * numbers
        if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            values = 1 + 0.5 * numbers  # of norms
        dtype = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        weights[name] = torch.tensor(values).to(dtype)
    return weights


def numbers(name: str, *shape: int) -> np.ndarray:
    """Uniform numbers from 0 to 1 that depend on the name alone."""
    return np.random.RandomState(zlib.crc32(name.encode())).uniform(size=shape).astype(np.float32)


def observed(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Two samples of two observation steps: pixels (2, 2, Y, X, 3), or numbers from 0 to 500 (2, 2, D)."""
    if len(shape) == 3:
        return (255 * numbers(name, 2, 2, *shape[1:], 3)).astype(np.uint8)
    return 500 * numbers(name, 2, 2, *shape)


def noise() -> torch.Tensor:
    """What sampling begins with, (2, H, Da)."""
    return torch.randn(2, SMALL["horizon"], 2, generator=torch.Generator().manual_seed(0))


def statistics(name: str, shape: tuple[int, ...], settings: dict) -> dict[str, torch.Tensor]:
    if len(shape) == 3 and settings.get("normalization_mapping", {}).get("VISUAL") != "MIN_MAX":
        imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        return {key: torch.tensor(value)[:, None, None] for key, value in imagenet.items()}
    if len(shape) == 3:
        return {"min": torch.full((3, 1, 1), 0.1), "max": torch.full((3, 1, 1), 0.8)}
    low = torch.from_numpy(100 * numbers(f"{name} low", *shape))
    high = low + 100 + 300 * torch.from_numpy(numbers(f"{name} high", *shape))
    return {"min": low, "max": high, "mean": (low + high) / 2, "std": (high - low) / 4, "q01": low + 5, "q99": high - 5}


def write(folder: Path, name: str, whole: bool) -> None:
    """One policy in LeRobot's layout, and `expected.json`: the actions it computes, in raw units (2, Ta, Da)."""
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.policies.factory import make_pre_post_processors

    kinds = {"observation.state": FeatureType.STATE, "observation.environment_state": FeatureType.ENV}
    settings = dict(SETTINGS[name])
    if "normalization_mapping" in settings:
        modes = settings["normalization_mapping"].items()
        settings["normalization_mapping"] = {kind: NormalizationMode(mode) for kind, mode in modes}
    config = DiffusionConfig(
        input_features={
            key: PolicyFeature(kinds.get(key, FeatureType.VISUAL), shape) for key, shape in CASES[name].items()
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        **SMALL,
        **settings,
    )
    torch.manual_seed(0)
    policy = DiffusionPolicy(config)
    stats = {key: statistics(key, shape, SETTINGS[name]) for key, shape in {**CASES[name], "action": (2,)}.items()}
    before, after = make_pre_post_processors(config, dataset_stats=stats)
    batches = {key: _as_lerobot_takes_it(observed(key, shape)) for key, shape in CASES[name].items()}
    if name == "state":
        _train(policy, before({**batches, "action": torch.from_numpy(400 * numbers("actions", 2, 8, 2))}))
    elif not whole:
        shapes = {key: list(value.shape) for key, value in policy.state_dict().items()}
        kept = {key: value for key, value in policy.state_dict().items() if key.endswith("pos_grid")}
        policy.load_state_dict({**filled(shapes), **kept})
    policy.eval()
    policy.save_pretrained(folder)
    before.save_pretrained(folder)
    after.save_pretrained(folder)
    if name == "cameras":  # as the development version writes it
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **MAIN}, indent=4))
    with torch.no_grad():
        batch = before(batches)
        if config.image_features:
            batch["observation.images"] = torch.stack([batch[key] for key in config.image_features], dim=2)
        actions = after(policy.diffusion.generate_actions(batch, noise=noise()))
    (folder / "expected.json").write_text(json.dumps([[[round(x, 5) for x in a] for a in s] for s in actions.tolist()]))
    if name != "state" and not whole:
        (folder / "model.safetensors").unlink()
        (folder / "shapes.json").write_text(json.dumps(shapes))
    (folder / "README.md").unlink(missing_ok=True)


def _as_lerobot_takes_it(array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.movedim(-1, -3).float() / 255 if tensor.dtype == torch.uint8 else tensor


def _train(policy: "torch.nn.Module", batch: dict) -> None:
    optimizer = torch.optim.Adam(policy.parameters(), 1e-3)
    batch["action_is_pad"] = torch.zeros(2, SMALL["horizon"], dtype=torch.bool)
    for _ in range(20):
        loss, _ = policy(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in CASES:
        write(Path(sys.argv[1]) / case, case, "--whole" in sys.argv)
