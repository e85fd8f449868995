"""A store holds whole episodes, whatever happens to the process that fills it."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

from dp import files
from dp.data import recording as store_module
from dp.data.recording import DemonstrationStore
from dp.tasks.pusht.demonstration import FACTS, FRAMES, Demonstration, replay
from dp.tasks.pusht.store import ReplayBuffer, read_facts
from tests.workspaces.wander import Wander

NAMES = ["state", "action", "keypoint", "n_contacts", "noise"]
SETTINGS = {"collector.n_steps": 12}


@pytest.fixture(scope="module")
def demonstrations() -> list[Demonstration]:
    made = map(Wander(), range(1001, 1010))
    return [d for d in made if d is not None]


def fill(path: Path, demonstrations: list[Demonstration], at_once: int = 1) -> None:
    with DemonstrationStore(path, SETTINGS, FRAMES, FACTS) as store:
        for start in range(0, len(demonstrations), at_once):
            store.append(demonstrations[start : start + at_once], "wander")


def assert_holds(path: Path, demonstrations: list[Demonstration]) -> None:
    buffer = ReplayBuffer.load(path, NAMES)
    assert buffer.n_episodes == len(demonstrations)
    for number, expected in enumerate(demonstrations):
        for name, array in buffer.episode(number).items():
            np.testing.assert_array_equal(array, getattr(expected, name), err_msg=name)
    facts = read_facts(path)
    for name in ("seed", "initial_state", "success", "final_coverage"):
        np.testing.assert_array_equal(facts[name][: len(demonstrations)], [getattr(d, name) for d in demonstrations])
    np.testing.assert_array_equal(buffer.initial_states, facts["initial_state"][: len(demonstrations)])
    assert buffer.from_seed.tolist() == [d.seed % 3 > 0 for d in demonstrations]
    assert set(facts["source"]) == {"wander"}


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_what_is_appended_is_read(tmp_path: Path, demonstrations: list[Demonstration], at_once: int) -> None:
    fill(tmp_path / "a.zarr", demonstrations, at_once)
    assert_holds(tmp_path / "a.zarr", demonstrations)


def test_chunks_end_anywhere(
    tmp_path: Path, demonstrations: list[Demonstration], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CHUNK_ROWS", {"data": 5, "meta": 2})
    fill(tmp_path / "a.zarr", demonstrations[:5])
    fill(tmp_path / "a.zarr", demonstrations[5:], at_once=2)
    assert_holds(tmp_path / "a.zarr", demonstrations)


def test_the_layout_is_the_official_one(
    tmp_path: Path, demonstrations: list[Demonstration], official_zarr: Path
) -> None:
    path = tmp_path / "a.zarr"
    fill(path, demonstrations)
    for name in ("data/state", "data/action", "data/keypoint", "data/n_contacts", "meta/episode_ends"):
        ours, theirs = (json.loads((s / name / ".zarray").read_text()) for s in (path, official_zarr))
        for key in ("dtype", "compressor", "filters", "fill_value", "order", "zarr_format"):
            assert ours[key] == theirs[key], (name, key)
        assert ours["shape"][1:] == theirs["shape"][1:]
    root = zarr.open_group(str(path), mode="r")  # any reader finds its way
    assert root["data/state"].shape[0] == root["meta/episode_ends"][-1]
    assert root["meta/source"][0] == "wander"


def test_a_stored_episode_happens_again_from_its_initial_state(demonstrations: list[Demonstration]) -> None:
    for demonstration in demonstrations[:3]:
        again = replay(demonstration)
        np.testing.assert_array_equal(again.state, demonstration.state)
        assert again.final_coverage == demonstration.final_coverage


@pytest.mark.parametrize("after", range(24))
def test_a_death_between_any_two_files_loses_nothing_and_leaves_nothing_half(
    tmp_path: Path, demonstrations: list[Demonstration], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    path = tmp_path / "a.zarr"
    fill(path, demonstrations[:3])
    written = 0
    write = files.write_atomically

    def write_until_dead(file, content):
        nonlocal written
        if written == after:
            raise KeyboardInterrupt
        written += 1
        write(file, content)

    store = DemonstrationStore(path, SETTINGS, FRAMES, FACTS)
    monkeypatch.setattr(files, "write_atomically", write_until_dead)
    n_files = 2 * len(NAMES) + 2 * 6  # a chunk and a length each
    if after < n_files:
        with pytest.raises(KeyboardInterrupt):
            store.append(demonstrations[3:4], "wander")
    else:
        store.append(demonstrations[3:4], "wander")
    store.close()
    monkeypatch.undo()
    assert_holds(path, demonstrations[: 3 if after < n_files else 4])
    DemonstrationStore(path, SETTINGS, FRAMES, FACTS).close()  # cuts off what was left
    root = zarr.open_group(str(path), mode="r")
    assert {root[f"data/{name}"].shape[0] for name in NAMES} == {int(root["meta/episode_ends"][-1])}
    fill(path, demonstrations[3 if after < n_files else 4 :])
    assert_holds(path, demonstrations)


FILLER = """
import sys
from pathlib import Path
from dp.data.recording import DemonstrationStore
from dp.tasks.pusht.demonstration import FACTS, FRAMES
from tests.workspaces.wander import Wander
with DemonstrationStore(Path(sys.argv[1]), {}, FRAMES, FACTS) as store:
    seed = (store.last_seed or 1000) + 1
    while True:
        demonstration = Wander()(seed)
        if demonstration is not None:
            store.append([demonstration], "wander")
            print("stored", flush=True)
        seed += 1
"""


def test_sigkill_at_any_moment_leaves_whole_episodes_and_the_next_process_goes_on(tmp_path: Path) -> None:
    path, rng, n_before = tmp_path / "a.zarr", random.Random(0), 0
    repository = Path(__file__).parent.parent.parent.parent
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", FILLER, str(path)], cwd=repository, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        while process.stdout.readline() != "stored\n":
            assert process.poll() is None
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        buffer = ReplayBuffer.load(path, NAMES)
        seeds = [seed for seed in range(1001, 1001 + 2 * buffer.n_episodes) if seed % 5][: buffer.n_episodes]
        assert buffer.seeds.tolist() == seeds
        assert np.diff(buffer.episode_ends, prepend=0).tolist() == [12 + seed % 7 for seed in seeds]
        assert buffer.n_episodes > n_before
        n_before = buffer.n_episodes
    again = [Wander()(int(seed)) for seed in buffer.seeds]
    np.testing.assert_array_equal(buffer.arrays["state"], np.concatenate([d.state for d in again if d is not None]))


def test_a_thousand_episodes_are_few_files(tmp_path: Path, demonstrations: list[Demonstration]) -> None:
    fill(tmp_path / "a.zarr", demonstrations * 143, at_once=500)
    n_frames = sum(map(len, demonstrations)) * 143
    assert sum(f.is_file() for f in (tmp_path / "a.zarr").rglob("*")) < 40 + 5 * n_frames / 4096 + 5


def test_other_settings_other_data_and_other_processes_are_refused(
    tmp_path: Path, demonstrations: list[Demonstration], small_zarr: Path
) -> None:
    fill(tmp_path / "a.zarr", demonstrations)
    with pytest.raises(ValueError, match=r"collector.n_steps=12 there, 13 here.*workspace.path"):
        DemonstrationStore(tmp_path / "a.zarr", {"collector.n_steps": 13}, FRAMES, FACTS)
    with pytest.raises(ValueError, match="not collected"):
        DemonstrationStore(small_zarr, SETTINGS, FRAMES, FACTS)
    with (
        DemonstrationStore(tmp_path / "a.zarr", SETTINGS, FRAMES, FACTS),
        pytest.raises(ValueError, match="in use by another process"),
    ):
        DemonstrationStore(tmp_path / "a.zarr", SETTINGS, FRAMES, FACTS)


def test_what_another_version_collected_is_refused(tmp_path: Path, demonstrations: list[Demonstration]) -> None:
    fill(tmp_path / "a.zarr", demonstrations)
    shutil.rmtree(tmp_path / "a.zarr/meta/initial_state")
    with pytest.raises(ValueError, match=r"has no meta/initial_state \(another version.*workspace.path"):
        DemonstrationStore(tmp_path / "a.zarr", SETTINGS, FRAMES, FACTS)


def test_trailing_rows_are_tolerated_only_in_what_was_collected(
    tmp_path: Path, demonstrations: list[Demonstration]
) -> None:
    path = tmp_path / "a.zarr"
    fill(path, demonstrations)
    for name in (*(f"data/{n}" for n in NAMES), "meta/seed", "meta/initial_state"):
        metadata = json.loads((path / name / ".zarray").read_text())
        metadata["shape"][0] += 2
        (path / name / ".zarray").write_text(json.dumps(metadata))
    assert_holds(path, demonstrations)
    (path / ".zattrs").write_text("{}")
    with pytest.raises(ValueError, match="the last episode of meta/episode_ends ends at"):
        ReplayBuffer.load(path, NAMES)
