"""Rotations of actions become the reference implementation's six numbers."""

import numpy as np
import pytest

from dp.data.rotations import to_rotation_6d

QUARTER_ABOUT_Z = [0, 0, np.pi / 2]


def test_an_arm_gets_the_first_two_rows_of_its_matrix() -> None:
    action = np.array([[1, 2, 3, 0, 0, 0, -1], [4, 5, 6, *QUARTER_ABOUT_Z, 1]])
    expected = [[1, 2, 3, 1, 0, 0, 0, 1, 0, -1], [4, 5, 6, 0, -1, 0, 1, 0, 0, 1]]
    np.testing.assert_allclose(to_rotation_6d(action), expected, atol=1e-6)


def test_two_arms_are_mapped_one_by_one() -> None:
    arms = np.random.default_rng(0).normal(size=(5, 2, 7))
    both = to_rotation_6d(arms.reshape(5, 14))
    assert both.dtype == np.float32
    np.testing.assert_array_equal(both, np.hstack([to_rotation_6d(arms[:, 0]), to_rotation_6d(arms[:, 1])]))


def test_other_actions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rotation=6d, but actions have 10 numbers.*dataset.rotation=null"):
        to_rotation_6d(np.zeros((3, 10)))
