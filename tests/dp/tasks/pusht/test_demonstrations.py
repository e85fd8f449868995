import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from dp.data.recording import DemonstrationStore
from dp.tasks.pusht import state as pusht
from dp.tasks.pusht.demonstration import FACTS, FRAMES, Demonstration, Recorder
from tests.specs import pusht_demonstrations
from tests.workspaces.wander import Wander


def test_observations_and_actions_fill_minus_one_to_one(small_zarr: Path) -> None:
    shapes = {"agent_pos": (2,), "block_pose": (4,), "keypoint": (9, 2)}
    data = pusht_demonstrations(shapes, path=str(small_zarr), val_ratio=0.2)
    windows = data.windows(np.arange(6), 16, 2, 8)
    for name, x in {**windows.obs, "action": windows.action}.items():
        torch.testing.assert_close(x.amin(0), -torch.ones(x.shape[1:]), msg=name)
        torch.testing.assert_close(x.amax(0), torch.ones(x.shape[1:]), msg=name)
    state = data.buffer.arrays["state"]
    for name, raw in pusht.low_dim_obs(state, shapes).items():
        np.testing.assert_allclose(data.normalizer.unnormalize(name, windows.obs[name]), raw, atol=1e-3)


def test_images_are_read_only_where_they_are_observed(small_zarr: Path) -> None:
    assert sorted(pusht_demonstrations({"agent_pos": (2,)}, path=str(small_zarr)).buffer.arrays) == ["action", "state"]
    seeing = pusht_demonstrations({"image": (3, 96, 96)}, path=str(small_zarr))
    assert seeing.windows(seeing.split.train, 16, 2, 8).obs["image"].dtype == torch.uint8


def test_training_and_validation_windows_share_no_frame(small_zarr: Path) -> None:
    data = pusht_demonstrations({"agent_pos": (2,)}, path=str(small_zarr), val_ratio=0.3, max_train_episodes=3)
    split = data.split
    assert (len(split.val), len(split.train)) == (2, 3)
    train, val = (set(data.windows(e, 16, 2, 8).table.unique().tolist()) for e in (split.train, split.val))
    assert train
    assert val
    assert not train & val


def test_no_validation_episodes_make_no_windows(small_zarr: Path) -> None:
    data = pusht_demonstrations({"agent_pos": (2,)}, path=str(small_zarr), val_ratio=0.0)
    assert len(data.windows(data.split.val, 16, 2, 8)) == 0


def test_a_horizon_beyond_every_episode_is_named(small_zarr: Path) -> None:
    data = pusht_demonstrations({"agent_pos": (2,)}, path=str(small_zarr))
    with pytest.raises(ValueError, match=r"none of \d+ episodes is long enough for a window of horizon=64"):
        data.windows(data.split.train, 64, 2, 8)


def test_path_without_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.path={tmp_path}/none: there is no data set there"):
        pusht_demonstrations({"agent_pos": (2,)}, path=str(tmp_path / "none"))


def test_several_stores_are_one_data_set(small_zarr: Path, tmp_path: Path) -> None:
    """The second one has no images: they are rendered, and follow those of the first."""
    second = tmp_path / "collected.zarr"
    with DemonstrationStore(second, {}, FRAMES, FACTS) as store:
        store.append([_demonstration(seed) for seed in (300, 301)], "test")
    shapes = {"image": [3, 96, 96], "agent_pos": [2]}
    alone = [pusht_demonstrations(shapes, path=str(path)).buffer for path in (small_zarr, second)]
    joined = pusht_demonstrations(shapes, path=[str(small_zarr), str(second)])
    assert joined.buffer.n_episodes == 8
    assert joined.buffer.seeds.tolist() == [0, 1, 2, 3, 4, 5, 300, 301]
    for number in range(8):
        expected = alone[number // 6].episode(number % 6)
        for name, array in joined.buffer.episode(number).items():
            np.testing.assert_array_equal(array, expected[name], err_msg=f"{name} of episode {number}")
    position = joined.windows(np.arange(8), 16, 2, 8).obs["agent_pos"]  # normalised over both
    torch.testing.assert_close(torch.stack([position.amin(0), position.amax(0)]), torch.tensor([[-1.0] * 2, [1.0] * 2]))


def test_stores_that_make_no_sense_are_named(small_zarr: Path) -> None:
    with pytest.raises(ValueError, match=rf"dataset\.path=\[{small_zarr},{small_zarr}\], expected a store, or several"):
        pusht_demonstrations({"agent_pos": (2,)}, path=[str(small_zarr), str(small_zarr)])
    with pytest.raises(ValueError, match=r"dataset\.path=\[\], expected a store"):
        pusht_demonstrations({"agent_pos": (2,)}, path=[])


def test_other_demonstrations_than_expected_are_refused(small_zarr: Path) -> None:
    expected = pusht_demonstrations({"image": (3, 96, 96)}, path=str(small_zarr)).sha256
    pusht_demonstrations({"agent_pos": (2,)}, path=str(small_zarr), sha256=expected)  # images do not matter
    with pytest.raises(ValueError, match=f"dataset.sha256=abc, but {small_zarr} has {expected}"):
        pusht_demonstrations({"agent_pos": (2,)}, path=str(small_zarr), sha256="abc")


def _demonstration(seed: int) -> Demonstration:
    recorder = Recorder(seed)
    for step in range(20):
        recorder.step(np.array([200 + 5 * step, 300], np.float32))
    return recorder.demonstration()


def test_mirrored_demonstrations_double_the_training_windows_only(small_zarr):
    shapes = {"image": [3, 96, 96], "agent_pos": [2]}
    plain = pusht_demonstrations(shapes, path=str(small_zarr), val_ratio=0.2)
    mirrored = pusht_demonstrations(shapes, path=str(small_zarr), val_ratio=0.2, mirror=True)
    assert len(mirrored.windows(mirrored.train_episodes, 16, 2, 8)) == 2 * len(
        plain.windows(plain.train_episodes, 16, 2, 8)
    )
    assert mirrored.split.val.tolist() == plain.split.val.tolist()
    assert mirrored.split.train.tolist() == plain.split.train.tolist()
    windows = mirrored.windows(mirrored.train_episodes, 16, 2, 8)
    recorded, reflected = (windows.gather(torch.tensor([i]))["obs"]["image"][0, 0] for i in (0, len(windows) // 2))
    assert torch.equal(reflected, recorded.transpose(0, 1).flip(0, 1))
    assert len(mirrored.buffer) == len(plain.buffer)


def test_training_seeds_and_executed_actions_are_those_of_episodes_that_start_from_their_seed(small_zarr, tmp_path):
    own = shutil.copytree(small_zarr, tmp_path / "own.zarr")
    zarr.open(str(own / "data/state"), mode="r+")[51, 0] = 17  # episode 2 does not start where seed 2 does
    data = pusht_demonstrations({"agent_pos": (2,)}, path=str(own), val_ratio=0.2)
    assert data.train_seeds == [n for n in data.split.train.tolist() if n != 2]
    actions = data.executed_actions()
    assert sorted(actions) == [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(actions[3], data.buffer.episode(3)["action"])


def test_executed_actions_have_the_noise_that_recorded_ones_lack(tmp_path):
    made = Wander()(1001)
    with DemonstrationStore(tmp_path / "wander.zarr", {}, FRAMES, FACTS) as store:
        store.append([made], "wander")
    data = pusht_demonstrations({"agent_pos": (2,)}, path=str(tmp_path / "wander.zarr"), val_ratio=0.0)
    np.testing.assert_array_equal(data.executed_actions()[1001], made.action + made.noise)


def test_positions_that_are_no_pixels_are_refused(small_zarr, tmp_path):
    own = shutil.copytree(small_zarr, tmp_path / "own.zarr")
    action = zarr.open(str(own / "data/action"), mode="r+")
    action[:] = action[:] / 512
    with pytest.raises(ValueError, match=f"{own}: actions range from 0.* to 0.*, but PushT's are pixels, 0-512"):
        pusht_demonstrations({"agent_pos": (2,)}, path=str(own))


@pytest.mark.parametrize("shapes", [{"agent_pos": (3,)}, {"agent_pos": (3, 96, 96)}])
def test_declared_shapes_that_are_not_pushts_are_refused(small_zarr, shapes):
    with pytest.raises(ValueError, match=r"shape_meta: agent_pos is .*, but PushT's is low_dim \[2\]"):
        pusht_demonstrations(shapes, path=str(small_zarr))


@pytest.mark.parametrize(
    ("scale", "doubt"),
    [
        ([1, 1, 1, 1, 1], None),
        ([1, 1, 1, 1, 180 / np.pi], "angles of the block range from .* radians"),
        ([0.01, 0.01, 0.01, 0.01, 1], "positions of the block reach .*, but its goal lies at 256"),
        ([1000, 1000, 1000, 1000, 1], "positions of the agent range from .*, expected -64 to 576"),
    ],
)
def test_other_units_than_pixels_and_radians_are_said(small_zarr, tmp_path, caplog, scale, doubt):
    own = shutil.copytree(small_zarr, tmp_path / "own.zarr")
    for name, factor in (("state", np.array(scale)), ("action", scale[0])):
        array = zarr.open(str(own / "data" / name), mode="r+")
        array[:] = array[:] * factor
    data = pusht_demonstrations({"agent_pos": (2,)}, path=str(own))
    assert bool(list(data.doubts())) == (doubt is not None)
    assert re.search(doubt or "^$", caplog.text)
