"""Attention over cameras and steps."""

import pytest
import torch

from dp.encoders import CNNEncoder
from dp.encoders.attention import AttentionPool
from tests.specs import specs

CAMERAS = specs(front=(3, 48, 64), wrist=(3, 48, 64), agent_pos=(2,))


def test_every_step_sees_every_camera_at_every_step_and_keeps_its_own() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(8, n_cameras=2)
    features = torch.randn(1, 3, 2, 8)
    pooled = pool(features)
    assert pooled.shape == (1, 3, 8)
    for step in range(3):
        for camera in range(2):
            other = features.clone()
            other[0, step, camera] = torch.randn(8)
            changed = (pool(other) - pooled).abs().amax(-1)[0]
            assert (changed > 1e-6).all()
            assert changed.argmax() == step


def test_it_is_multi_head_attention() -> None:
    torch.manual_seed(0)
    pool = AttentionPool(8, n_cameras=2)
    features = torch.randn(5, 3, 2, 8)
    steps = pool.steps(torch.arange(3))
    tokens = (pool.norm(features) + pool.camera + steps[:, None]).flatten(1, 2)
    mha = torch.nn.MultiheadAttention(8, 4, batch_first=True)
    mha.load_state_dict({
        "in_proj_weight": torch.cat([pool.query.weight, pool.key_value.weight]),
        "in_proj_bias": torch.cat([pool.query.bias, pool.key_value.bias]),
        "out_proj.weight": pool.out.weight, "out_proj.bias": pool.out.bias,
    })  # fmt: skip
    expected = features.mean(2) + mha(steps.expand(5, -1, -1), tokens, tokens)[0]
    torch.testing.assert_close(pool(features), expected)


@pytest.mark.parametrize("shared", [False, True])
def test_an_encoder_fuses_its_cameras(shared: bool) -> None:
    torch.manual_seed(0)
    encoder = CNNEncoder(CAMERAS, crop=44, channels=[4, 8], kernel_sizes=[5, 3], strides=[2, 2], feature_dim=16,
        shared=shared, fuse="attention").eval()  # fmt: skip
    obs = {"front": torch.rand(2, 2, 3, 48, 64), "wrist": torch.rand(2, 2, 3, 48, 64), "agent_pos": torch.rand(2, 2, 2)}
    features = encoder(obs)
    assert features.shape == (2, 2, 18)
    assert torch.equal(features[..., -2:], obs["agent_pos"])
    features[..., :16].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    swapped = encoder({**obs, "front": obs["wrist"], "wrist": obs["front"]})
    assert not torch.allclose(swapped, features)  # it knows which camera is which


def test_shared_weights_see_all_cameras_alike() -> None:
    torch.manual_seed(0)
    encoder = CNNEncoder(CAMERAS, crop=[44, 60], shared=True, channels=[4], kernel_sizes=[5], strides=[4]).eval()
    assert list(encoder.backbones) == ["shared"]
    image, agent = torch.rand(2, 2, 3, 48, 64), torch.rand(2, 2, 2)
    with torch.no_grad():
        features = encoder({"front": image, "wrist": image, "agent_pos": agent})
    front, wrist, _ = features.split([128, 128, 2], dim=-1)
    assert torch.equal(front, wrist)
    uneven = specs(front=(3, 48, 64), wrist=(3, 40, 40))
    with pytest.raises(ValueError, match=r"shared=true, but the crops differ.*encoder.crop=\[HEIGHT,WIDTH\]"):
        CNNEncoder(uneven, crop=None, channels=[4], kernel_sizes=[5], strides=[4], shared=True)
