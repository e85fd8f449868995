"""Episodes by outcome, where they begin, and again."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest

from dp.envs import PushTEnv
from dp.tasks.pusht import initial_state
from tests.workspaces.conftest import RUN
from tests.workspaces.report.conftest import made_up
from workspaces.report import atlas, figures, tables
from workspaces.report.runs import find


def sheets(runs):
    with figures.style():
        return atlas.sheets(tables.results(runs))


def test_episodes_are_sorted_worst_first_and_named_by_their_outcome():
    (sheet,) = sheets([made_up([0.89, 1.0, 0.9, 0.1])])
    assert [(card.seed, card.outcome) for card in sheet.cards] == [
        (100003, "failure"), (100000, "failure"), (100002, "near miss"), (100001, "success"),
    ]  # fmt: skip
    assert sheet.counts == {"failure": 2, "near miss": 1, "success": 1}
    for card in sheet.cards:
        assert f'<a href="#{card.id}"><title>seed {card.seed}' in sheet.map
    assert " id=" not in sheet.map  # several maps share one page


def test_the_best_settings_are_shown():
    runs = [made_up([h / 100], horizon=h) for h in range(1, 15)]
    shown = sheets(runs)
    assert len(shown) == atlas.MAX_SETTINGS
    assert shown[0].name.startswith("horizon=14")


def test_the_outline_is_the_block_at_its_initial_pose():
    env = PushTEnv(["agent_pos"])
    env.reset(100007)
    block, goal = env.outlines()
    assert np.abs(block.mean(0) - env.state[2:4]).max() < 90
    assert np.abs(goal.mean(0) - 256).max() < 90
    assert (block[0] == block[-1]).all()
    area = 120 * 30 + 90 * 30
    for outline in (block, goal):
        x, y = outline.T
        assert abs(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2 == pytest.approx(area, rel=1e-3)
    angle = initial_state(100007)[4]
    top = block[np.argsort(np.linalg.norm(block[:-1] - env.state[2:4], axis=1))]
    assert len(top) == len(block) - 1
    stem = np.array([-np.sin(angle), np.cos(angle)])
    assert ((block - env.state[2:4]) @ stem).max() == pytest.approx(120, abs=1)  # pixels from the bar's outer edge


def test_videos_are_part_of_the_page_up_to_a_size(sweep, monkeypatch):
    runs = [run for run in find(sweep).finished if run.path.name == "h16-evaluated"]
    assert sorted(card.seed for card in sheets(runs)[0].cards if card.video) == [100000, 100001]
    monkeypatch.setattr(atlas, "MAX_VIDEO_BYTES", 0)
    cards = sheets(runs)[0].cards
    assert not any(card.video for card in cards)
    assert sum(card.video_file is not None for card in cards) == 2


@pytest.mark.parametrize("name", ["h16-evaluated", "h10"])
def test_the_command_replays_the_episode_and_records_it(sweep, tmp_path, name):
    run = next(run for run in find(sweep).finished if run.path.name == name)
    row = run.episodes[2]
    python, script, *overrides = shlex.split(atlas.replay(run, row["seed"]))
    assert (python, script) == ("python", "run.py")
    command = [sys.executable, str(RUN), *overrides, f"run_dir={tmp_path / 'again'}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "again/evaluation.json").read_text())["episodes"] == [row]
    assert len(list((tmp_path / "again/media").iterdir())) == 1


def test_what_was_typed_is_typed_again():
    typed = ["workspace=evaluate", "checkpoint=old.pt", "scheduler=ddpm", "workspace.engine=eager", "run_dir=x",
             "env_runner.n_episodes=500", "env_runner.start_seed=7", "env_runner.max_steps=20"]  # fmt: skip
    run = made_up([0.5], first=7, max_steps=20, verb="evaluate", record={"overrides": typed})
    command = atlas.replay(run, 7)
    assert "scheduler=ddpm workspace.engine=eager env_runner.max_steps=20 env_runner.start_seed=7" in command
    assert command.count("max_steps") == 1
    assert "500" not in command
    assert "run_dir" not in command
