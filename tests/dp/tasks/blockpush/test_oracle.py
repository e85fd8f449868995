"""The oracle solves the task in each of its ways, from anywhere, and always alike."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="Block Push needs pybullet: pip install -e '.[blockpush]'")

from dp.tasks.blockpush.env import BlockPushEnv
from dp.tasks.blockpush.oracle import OBS_NAMES, Oracle, _deliveries, finish
from dp.tasks.recorder import RecordedEpisode

SEEDS = range(1000, 1005)


@pytest.fixture(scope="module")
def demonstrations() -> list[RecordedEpisode | None]:
    return [Oracle()(seed) for seed in SEEDS]


def replayed(demonstration: RecordedEpisode) -> tuple[dict[str, list], np.ndarray]:
    env = BlockPushEnv(OBS_NAMES)
    env.reset(demonstration.seed)
    obs: dict[str, list] = {name: [] for name in OBS_NAMES}
    for action in demonstration.action:
        for name, value in env.observe().items():
            obs[name].append(value)
        env.step(action)
    return obs, env.entered


def test_it_solves_the_task_and_its_actions_replay_to_the_bit(demonstrations: list) -> None:
    for demonstration in demonstrations:
        assert demonstration.success
        assert len(demonstration) < 150
    obs, _ = replayed(demonstrations[0])
    for name in OBS_NAMES:
        np.testing.assert_array_equal(obs[name], demonstrations[0].obs[name])


def test_demonstrations_differ_in_which_block_goes_where_and_when(demonstrations: list) -> None:
    ways = [_deliveries(np.zeros((2, 2), bool), np.random.default_rng([seed, 0])) for seed in range(100)]
    counts = {way: ways.count([*way]) for way in map(tuple, ways)}
    assert len(counts) == 4
    assert min(counts.values()) > 10
    first = [int(np.argmax([_travel(d, "block", 20), _travel(d, "block2", 20)])) for d in demonstrations]
    assert set(first) == {0, 1}


def _travel(demonstration: RecordedEpisode, block: str, n_steps: int) -> float:
    path = demonstration.obs[f"{block}_translation"][:n_steps]
    return float(np.hypot(*(path[-1] - path[0])))


def test_only_the_shortest_ways_are_left_where_a_block_has_entered_a_target() -> None:
    entered = np.array([[False, True], [False, False]])
    assert {tuple(_deliveries(entered, np.random.default_rng(seed))) for seed in range(20)} == {((1, 0),)}


def test_it_is_the_same_in_another_process(demonstrations: list) -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        theirs = pool.submit(Oracle(), SEEDS[2]).result()
    np.testing.assert_array_equal(theirs.action, demonstrations[2].action)


def test_it_finishes_what_another_has_begun(demonstrations: list) -> None:
    half = demonstrations[1].action[:45]
    rest = finish(SEEDS[1], half)
    assert rest is not None
    assert rest.success
    for name in OBS_NAMES:
        np.testing.assert_array_equal(rest.obs[name][0], demonstrations[1].obs[name][45])


def test_it_gives_up_in_time_and_noise_is_an_argument() -> None:
    assert replace(Oracle(), max_steps=5)(1000) is None
    calm, noisy = (replace(Oracle(), noise=noise)(1000) for noise in (0.0, 0.004))
    assert calm is not None
    assert noisy is not None
    assert not np.array_equal(calm.action[:5], noisy.action[:5])
