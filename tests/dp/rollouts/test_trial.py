"""What could fail at the first rollout fails at the start, and says what is wrong with the environment."""

import numpy as np
import pytest

from dp.rollouts.trial import try_out
from dp.tasks.pusht.env import PushTEnv
from tests.specs import specs
from tests.toylab.reach import ReachEnv

SPECS = specs(front=(3, 48, 64), wrist=(3, 40, 32), joints=(7,), goal=(7,))
ACTION = specs(action=(7,))["action"]


def test_environments_that_do_what_they_must_pass() -> None:
    try_out(ReachEnv, SPECS, ACTION, seed=0)
    shapes = specs(image=(3, 96, 96), agent_pos=(2,))
    try_out(lambda: PushTEnv(list(shapes)), shapes, specs(action=(2,))["action"], seed=0)


def changed(**methods: object) -> type:
    return type("Changed", (ReachEnv,), methods)


def seeing(**obs: np.ndarray) -> type:
    return changed(observe=lambda self: {**ReachEnv.observe(self), **obs})


def broken(*_: object) -> None:
    raise KeyError("motor")


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (changed(observe=lambda self: {"cam": np.zeros(3)}), r"observes \['cam'\], but .*declares front"),
        (seeing(front=np.zeros((96, 96, 3), np.uint8)), r"front is uint8 \(96, 96, 3\), .* rgb \[3, 48, 64\]"),
        (seeing(front=np.zeros((3, 48, 64), np.uint8)), "channels last"),
        (seeing(front=np.zeros((48, 64, 3), np.float32)), "front is float32"),
        (seeing(joints=np.zeros(6, np.float32)), r"joints is float32 \(6,\), .* low_dim \[7\]"),
        (changed(reset=broken), r"fails in reset\(seed\): KeyError: 'motor'"),
        (changed(step=broken), r"fails in step\(action\)"),
        (changed(info=lambda self: {"distance": "far"}), r"fails in info\(\): ValueError"),
        (changed(__init__=broken), "fails in making it"),
    ],
)
def test_mistakes_are_named(env: type, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        try_out(env, SPECS, ACTION, seed=0)


def test_observations_beyond_the_declared_ones_do_not_matter() -> None:
    try_out(seeing(more=np.zeros(2)), SPECS, ACTION, seed=0)
