"""The state encoder only concatenates."""

import pytest
import torch

from dp.encoders import StateEncoder
from tests.specs import specs


def test_observations_are_concatenated_in_the_order_of_the_specs() -> None:
    encoder = StateEncoder(specs(keypoint=(9, 2), agent_pos=(2,)))
    obs = {"agent_pos": torch.randn(4, 3, 2), "keypoint": torch.randn(4, 3, 9, 2)}
    assert encoder.out_dim == 20
    assert torch.equal(encoder(obs), torch.cat([obs["keypoint"].reshape(4, 3, 18), obs["agent_pos"]], dim=-1))


def test_an_image_is_refused_with_advice() -> None:
    with pytest.raises(ValueError, match=r"encoder=state cannot read images \(wrist\): use encoder=cnn"):
        StateEncoder(specs(wrist=(3, 96, 96), agent_pos=(2,)))
