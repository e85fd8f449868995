from pathlib import Path

import numpy as np
import pytest
import torch

from dp.data import Episodes, WindowDataset
from dp.data.windows import image_to_float, split_episodes, window_table
from dp.tasks.pusht.store import ReplayBuffer
from tests.specs import pusht_demonstrations


@pytest.fixture(scope="module")
def official(official_zarr: Path) -> ReplayBuffer:
    return ReplayBuffer.load(official_zarr, ["state", "action"])


def lengths(*episodes: int) -> Episodes:
    return Episodes({}, np.cumsum(episodes))


@pytest.mark.parametrize(("horizon", "n_windows"), [(16, 24_208), (10, 25_444)])
def test_official_data_have_the_reference_number_of_windows(
    official: ReplayBuffer, horizon: int, n_windows: int
) -> None:
    table = window_table(official, np.arange(206), horizon, n_obs_steps=2, n_action_steps=8)
    assert table.shape == (n_windows, horizon)
    episode = np.searchsorted(official.episode_ends, table, side="right")
    assert (episode == episode[:, :1]).all()
    assert (np.diff(table, axis=1) <= 1).all()
    assert (np.diff(table, axis=1) >= 0).all()


def test_split_of_the_paper(official: ReplayBuffer) -> None:
    split = split_episodes(official.n_episodes, val_ratio=0.02, max_train_episodes=90, seed=42)
    assert split.val.tolist() == [18, 90, 134, 157]
    assert len(split.train) == len(set(split.train)) == 90
    assert not set(split.train) & set(split.val)
    assert len(window_table(official, split.train, 16, 2, 8)) == 10_726


def test_windows_replicate_the_first_and_last_frame_of_their_episode() -> None:
    table = window_table(lengths(3, 5), np.array([0, 1]), horizon=4, n_obs_steps=2, n_action_steps=2)
    assert table.tolist() == [
        [0, 0, 1, 2],
        [0, 1, 2, 2],
        [3, 3, 4, 5],
        [3, 4, 5, 6],
        [4, 5, 6, 7],
        [5, 6, 7, 7],
    ]


def test_only_the_episodes_asked_for_are_cut() -> None:
    table = window_table(lengths(3, 5, 4), np.array([1]), horizon=2, n_obs_steps=1, n_action_steps=1)
    assert table.tolist() == [[3, 4], [4, 5], [5, 6], [6, 7]]


def test_episode_shorter_than_its_shortest_window_has_none() -> None:
    assert window_table(lengths(3), np.array([0]), horizon=16, n_obs_steps=2, n_action_steps=8).shape == (0, 16)


def test_split_is_a_function_of_its_seed() -> None:
    first, again, other = (split_episodes(50, 0.2, 20, seed) for seed in (1, 1, 2))
    assert first.val.tolist() == again.val.tolist() != other.val.tolist()
    assert first.train.tolist() == again.train.tolist() != other.train.tolist()
    assert (len(first.val), len(first.train)) == (10, 20)


def test_split_without_limits_uses_every_episode_once() -> None:
    split = split_episodes(206, 0.02, None, 42)
    assert sorted([*split.train, *split.val]) == list(range(206))
    assert split_episodes(206, 0.0, None, 42).train.tolist() == list(range(206))
    assert len(split_episodes(206, 0.0, None, 42).val) == 0
    assert len(split_episodes(10, 0.001, None, 42).val) == 1  # somebody asked for validation: at least one
    assert len(split_episodes(2, 0.99, None, 42).train) == 1  # and never all


@pytest.mark.parametrize("val_ratio", [-0.1, 1.0, float("nan")])
def test_bad_val_ratio_is_named(val_ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.val_ratio={val_ratio}, expected 0 <= val_ratio < 1"):
        split_episodes(10, val_ratio, None, 42)


@pytest.mark.parametrize("limit", [0, -3])
def test_bad_max_train_episodes_is_named(limit: int) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.max_train_episodes={limit}, expected at least 1"):
        split_episodes(10, 0.1, limit, 42)


def test_sample_has_the_documented_shapes_and_ranges(small_zarr: Path) -> None:
    shapes = {"image": (3, 96, 96), "agent_pos": (2,), "keypoint": (9, 2)}
    demonstrations = pusht_demonstrations(shapes, path=str(small_zarr), val_ratio=0.0)
    windows = demonstrations.windows(np.arange(6), horizon=16, n_obs_steps=2, n_action_steps=8)
    assert len(windows) == sum(n - 16 + 1 + 1 + 7 for n in (24, 27, 30, 33, 36, 39))
    sample = windows[20]  # in the second episode, its frames 2 to 17
    assert {name: tuple(x.shape) for name, x in sample["obs"].items()} == {
        "image": (2, 3, 96, 96),
        "agent_pos": (2, 2),
        "keypoint": (2, 9, 2),
    }
    assert sample["action"].shape == (16, 2)
    assert {x.dtype for x in (*sample["obs"].values(), sample["action"])} == {torch.float32}
    arrays, normalizer = demonstrations.buffer.arrays, demonstrations.normalizer
    rows = windows.table[20]
    assert rows.tolist() == list(range(26, 42))
    np.testing.assert_array_equal(sample["obs"]["image"][1].permute(1, 2, 0) * 255, arrays["img"][27])
    np.testing.assert_allclose(
        normalizer.unnormalize("agent_pos", sample["obs"]["agent_pos"]), arrays["state"][26:28, :2], atol=1e-3
    )
    np.testing.assert_allclose(normalizer.unnormalize("action", sample["action"]), arrays["action"][rows], atol=1e-3)


def test_gather_keeps_images_as_bytes_and_sees_only_the_first_steps() -> None:
    image = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 4, 6, 3)
    windows = WindowDataset({"image": image}, torch.arange(5.0)[:, None], torch.tensor([[0, 0, 1], [2, 3, 4]]), 2)
    batch = windows.gather(torch.tensor([1, 0]))
    assert (batch["obs"]["image"].dtype, batch["obs"]["image"].shape) == (torch.uint8, (2, 2, 4, 6, 3))
    assert batch["obs"]["image"][..., 0, 0, 0].tolist() == [[2, 3], [0, 0]]
    assert batch["action"][..., 0].tolist() == [[2, 3, 4], [0, 0, 1]]
    assert windows.nbytes == image.nbytes + 5 * 4 + 6 * 8


def test_images_become_channels_first_in_0_to_1() -> None:
    pixels = torch.tensor([[[0, 51, 255], [255, 0, 102]]], dtype=torch.uint8)  # (1, 2, 3)
    torch.testing.assert_close(image_to_float(pixels), torch.tensor([[[0, 1.0]], [[0.2, 0]], [[1, 0.4]]]))
