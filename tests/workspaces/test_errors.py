"""A user's mistakes: one or two lines that help, a code that is not 0, nothing written."""

import errno
import os
import subprocess
import sys

import pytest

from tests.workspaces.conftest import RUN
from workspaces.errors import explain


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("workspace.num_stps=3", "unknown key workspace.num_stps. Did you mean workspace.num_steps"),
        ("horizn=3", "unknown key horizn. Did you mean horizon"),
        ("encoder=resnt18", "unknown choice encoder=resnt18. Did you mean resnet18 or resnet18_paper?"),
        ("+experiment=pusht_imge", "unknown choice experiment=pusht_imge. Did you mean pusht_image"),
        ("experiment=pusht_image", "write +experiment="),
        ("encoder=zzz", "Known: cnn, resnet18, resnet18_paper, state"),
        ("n_action_steps=16", "horizon=16 is too short: n_obs_steps - 1 + n_action_steps = 17. Use horizon=17"),
        ("n_action_steps=0", "n_action_steps=0, expected a whole number of at least 1"),
        ("horizon=abc", "horizon=abc, expected a whole number"),
        ("optimizer.lr=abc", "optimizer.lr=abc, expected a number"),
        ("scheduler.num_inference_steps=101", "scheduler.num_inference_steps=101, expected 1 to"),
        ("scheduler.prediction_type=eps", "expected epsilon, sample or v_prediction"),
        ("logger.mode=on", "expected one of: auto, online, offline, disabled"),
        ("workspace.every.log=0", "workspace.every.log=0, expected a whole number of at least 1"),
        ("workspace.precision=fp8", "expected auto, fp32 or bf16"),
        ("workspace.engine=fast", "workspace.engine=fast, expected auto, eager, compile or graph"),
        ("n_threads=0", "n_threads=0, expected auto or a whole number"),
        ("env_runner.n_episodes=0", "env_runner.n_episodes=0, expected at least 1"),
        ("dataset.path=/nowhere", "dataset.path=/nowhere: there is no data set there"),
        ("dataset.source=elsewhere", "expected one of: auto, official"),
        ("device=tpu", "expected auto, cpu or cuda"),
        ("workspace=evaluate", "give checkpoint=PATH"),
        ("seed==3", "Error parsing override 'seed==3'"),
    ],
)
def test_a_mistake_is_explained(typed, expected, tmp_path):
    result = subprocess.run([sys.executable, str(RUN), typed], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().removeprefix("starting, which takes some seconds\n").splitlines()) <= 2
    assert not any(tmp_path.iterdir())


def test_cuda_is_not_promised_where_there_is_none(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    result = subprocess.run(
        [sys.executable, str(RUN), "device=cuda"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert "device=cuda, but torch finds no CUDA device here" in result.stderr


def test_without_arguments_help_names_every_experiment_group_and_verb(tmp_path):
    result = subprocess.run([sys.executable, str(RUN)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert result.stderr == ""
    configs = RUN.parent / "configs"
    for experiment in (configs / "experiment").glob("*.yaml"):
        assert experiment.stem in result.stdout
    for group in configs.iterdir():
        assert group.stem == "config" or group.stem in result.stdout
    for verb in (configs / "workspace").glob("*.yaml"):
        assert verb.stem in result.stdout


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EAGAIN, "ulimit -u"),
        (errno.EROFS, "run_dir"),
    ],
)
def test_what_the_system_refuses_is_one_line_whichever_library_asked(number, advice):
    try:
        try:
            raise OSError(number, os.strerror(number))
        except OSError as error:
            raise RuntimeError("a library's own words") from error
    except RuntimeError as error:
        message = explain(error)
    assert os.strerror(number) in message
    assert advice in message
    assert "\n" not in message
