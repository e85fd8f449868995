"""What version 1 wrote is read as today's version writes it."""

import torch

from workspaces.load import migrate, migrate_weights

VERSION_1 = {
    "task": {
        "shape_meta": {"obs": {"image": [3, 96, 96], "agent_pos": [2]}, "action": [2]},
        "env": {"_target_": "dp.envs.PushTEnv", "_partial_": True},
    },
    "encoder": {"_target_": "dp.encoders.ResNetEncoder", "crop": 84, "n_keypoints": 32, "weights": None},
}


def test_an_image_encoder_gets_the_options_that_change_nothing() -> None:
    config = migrate(VERSION_1)
    assert config["kernels"] == "auto"
    assert config["encoder"] == {
        **VERSION_1["encoder"], "norm": "group", "final_relu": False, "mean": 0.5, "std": 0.5,
        "jitter": 0.0, "erase": 0.0, "shared": False, "fuse": "concat", "resize": None,
    }  # fmt: skip
    assert migrate(config) == config


def test_what_a_newer_version_chose_is_kept() -> None:
    encoder = {**VERSION_1["encoder"], "final_relu": True, "mean": [0.1, 0.2, 0.3]}
    config = migrate({**VERSION_1, "kernels": "reference", "encoder": encoder})
    assert config["kernels"] == "reference"
    assert config["encoder"]["final_relu"] is True
    assert config["encoder"]["mean"] == [0.1, 0.2, 0.3]


def test_the_one_backbone_is_that_of_the_camera_called_image() -> None:
    weights = {"encoder.backbone.0.0.weight": torch.ones(1), "denoiser.encoder.backbone.x": torch.zeros(1)}
    renamed = migrate_weights(weights, VERSION_1)
    assert list(renamed) == ["encoder.backbones.image.0.0.weight", "denoiser.encoder.backbone.x"]
    assert migrate_weights(renamed, VERSION_1) == renamed


def test_an_encoder_of_the_users_own_keeps_its_names() -> None:
    weights = {"encoder.backbone.weight": torch.ones(1)}
    assert migrate_weights(weights, {"encoder": {"_target_": "mylab.Encoder"}}) == weights
