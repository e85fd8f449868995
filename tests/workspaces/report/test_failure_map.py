"""Episodes by outcome, where they begin, and again."""

import base64
import json
import shlex
from pathlib import Path

import av
import numpy as np
import pytest

from dp.tasks.pusht.env import PushTEnv
from dp.tasks.pusht.state import initial_state
from tests.cli import run_py
from tests.workspaces.report.conftest import made_up
from workspaces.report import failure_map, figures, tables
from workspaces.report.runs import find


def sheets(runs, folder=Path("report"), n_films=failure_map.MAX_FILMED):
    with figures.style():
        return failure_map.sheets(tables.results(runs), folder, n_films=n_films)


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
    assert len(shown) == failure_map.MAX_SETTINGS
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


def evaluated(sweep):
    return [run for run in find(sweep).finished if run.path.name == "h16-evaluated"]


def test_every_episode_has_a_video_recorded_or_filmed_from_its_actions(sweep, tmp_path):
    cards = {card.seed: card for card in sheets(evaluated(sweep), tmp_path)[0].cards}
    assert sorted(cards) == [100000, 100001, 100002, 100003]
    for seed, card in cards.items():
        file = tmp_path / card.video_link
        assert base64.b64decode(card.video.partition(",")[2]) == file.read_bytes()
        assert (file.parent == tmp_path / "videos") == (seed >= 100002)  # the first two were recorded
        with av.open(str(file)) as video:
            assert sum(1 for _ in video.decode(video=0)) == card.length + 1
    filmed = {file: file.stat().st_mtime_ns for file in (tmp_path / "videos").iterdir()}
    sheets(evaluated(sweep), tmp_path)
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "videos").iterdir()} == filmed


def test_of_many_episodes_the_worst_are_filmed(sweep, tmp_path):
    (run,) = evaluated(sweep)
    for file in (run.path / "media").iterdir():
        file.unlink()
    worst = min(run.episodes, key=lambda row: row["max_reward"])["seed"]
    assert [card.seed for card in sheets([run], tmp_path, n_films=1)[0].cards if card.video] == [worst]


def test_what_does_not_fit_into_the_page_is_linked(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(failure_map, "MAX_VIDEO_BYTES", 0)
    cards = sheets(evaluated(sweep), tmp_path)[0].cards
    assert not any(card.video for card in cards)
    assert all((tmp_path / card.video_link).is_file() for card in cards)


def test_an_episode_that_runs_otherwise_here_is_not_filmed(sweep, tmp_path, caplog):
    (run,) = evaluated(sweep)
    run.episodes[2]["max_reward"] = 0.5
    cards = {card.seed: card for card in sheets([run], tmp_path)[0].cards}
    assert cards[100002].video is cards[100002].video_link is None
    assert cards[100003].video
    assert "no video of 1 episode: another version" in caplog.text


@pytest.mark.parametrize("damage", ["lost", "cut off"])
def test_without_their_actions_only_recorded_episodes_have_a_video(sweep, tmp_path, caplog, damage):
    (run,) = evaluated(sweep)
    run.actions.unlink() if damage == "lost" else run.actions.write_bytes(run.actions.read_bytes()[:300])
    assert sorted(card.seed for card in sheets([run], tmp_path)[0].cards if card.video) == [100000, 100001]
    assert ("is damaged" in caplog.text) == (damage == "cut off")


@pytest.mark.parametrize("name", ["h16-evaluated", "h10"])
def test_the_command_replays_the_episode_and_records_it(sweep, tmp_path, name):
    run = next(run for run in find(sweep).finished if run.path.name == name)
    row = run.episodes[2]
    python, script, *overrides = shlex.split(failure_map.replay(run, row["seed"]))
    assert (python, script) == ("python", "run.py")
    result = run_py(*overrides, f"run_dir={tmp_path / 'again'}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "again/evaluation.json").read_text())["episodes"] == [row]
    assert len(list((tmp_path / "again/media").iterdir())) == 1


def test_what_was_typed_is_typed_again():
    typed = ["workspace=evaluate", "checkpoint=old.pt", "scheduler=ddpm", "workspace.engine=eager", "run_dir=x",
             "env_runner.n_episodes=500", "env_runner.start_seed=7", "env_runner.max_steps=20"]  # fmt: skip
    run = made_up([0.5], first=7, max_steps=20, verb="evaluate", record={"overrides": typed})
    command = failure_map.replay(run, 7)
    assert "scheduler=ddpm workspace.engine=eager env_runner.max_steps=20 env_runner.start_seed=7" in command
    assert command.count("max_steps") == 1
    assert "500" not in command
    assert "run_dir" not in command
