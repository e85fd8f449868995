"""A user's mistakes: one or two lines that help, a code that is not 0, nothing written."""

import errno
import os
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from tests.cli import RUN, run_py
from workspaces import build, errors
from workspaces.errors import explain


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("workspace.num_stps=3", "unknown key workspace.num_stps. Did you mean workspace.num_steps"),
        ("workspace.precision=fp8", "expected auto, fp32 or bf16"),
        ("dataset.path=/nowhere", "dataset.path=/nowhere: there is no data set there"),
        ("workspace=evaluate", "set checkpoint=PATH"),
        ("seed=0,1", "-m (--multirun) sweeps over them"),
    ],
)
def test_a_mistake_ends_a_command_with_a_line_and_writes_nothing(typed, expected, tmp_path):
    result = run_py(typed, cwd=tmp_path, timeout=60)
    assert result.returncode != 0
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().removeprefix("starting, which takes some seconds\n").splitlines()) <= 2
    assert not any(tmp_path.iterdir())


@pytest.fixture
def explained(monkeypatch):
    """What a user reads after typing this."""

    def call(typed: str) -> str:
        monkeypatch.setattr(sys, "argv", ["run.py", typed])
        GlobalHydra.instance().clear()
        try:
            with initialize_config_dir(str(RUN.parent / "configs"), version_base="1.3"):
                composed = compose("config", [typed], return_hydra_config=True)
                HydraConfig.instance().set_config(composed)
                with open_dict(composed):
                    del composed["hydra"]
                build.workspace(composed)
        except Exception as error:
            return errors._explain(errors.cause_of(error)) or f"TRACEBACK {error!r}"
        finally:
            HydraConfig.instance().cfg = None
        return ""

    yield call
    GlobalHydra.instance().clear()


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("horizn=3", "unknown key horizn. Did you mean horizon"),
        ("encoder=resnt18", "unknown choice encoder=resnt18. Did you mean resnet18 or resnet18_paper?"),
        ("+experiment=pusht_imge", "unknown choice experiment=pusht_imge. Did you mean pusht_image"),
        ("experiment=pusht_image", "write +experiment="),
        ("encoder._target_=dp.encoders.cnn.CNEncoder", "dp.encoders.cnn has no CNEncoder. Did you mean CNNEncoder"),
        ("encoder=zzz", "Known: cnn, resnet18, resnet18_paper, state"),
        ("n_action_steps=16", "horizon=16 is too short: n_obs_steps - 1 + n_action_steps = 17. Use horizon=17"),
        ("scheduler.num_inference_steps=101", "scheduler.num_inference_steps=101, expected 1 to"),
        ("workspace.engine=fast", "workspace.engine=fast, expected auto, eager, compile or graph"),
        ("device=tpu", "device=tpu, expected auto, cpu"),
        ("seed==3", "seed==3 cannot be read"),
        ("name=é", "in quotes within quotes: 'name=\"é\"'"),
        ("horizon={", "horizon={ cannot be read"),
        ("horizon", "horizon has no value, expected KEY=VALUE"),
        (".a=3", ".a is not a key, expected KEY=VALUE"),
        ("seed=choice()", "seed=choice()"),
        ("seed=0,1", "'seed=\"0,1\"' is a text"),
        ("seed=range(3)", "--multirun"),
        (f"task.shape_meta.obs.agent_pos.shape={'x' * 3000}", "agent_pos.shape=xxx"),
        ("=5", "=5: expected KEY=VALUE"),
        ("denoiser=null", "denoiser=null: expected KEY=VALUE, and for a group one of its choices"),
        (
            "denoiser.channels={a: 1}",
            "denoiser.channels={a: 1} has the wrong kind of value for this setting, expected a value",
        ),
        ("~horizon", "~horizon deletes a required setting"),
        ("~encoder", "~encoder deletes a required setting"),
        ("~workspace.every.log", "workspace.every.log is missing"),
        ("~workspace.num_steps", "workspace.num_steps is missing"),
        ("+denoiser.foo=1", "unknown key denoiser.foo: UNet1d has no such argument"),
        ("denoiser._target_=dp.denoisers.UNet2d", "UNet2d"),
        ("seed=${oc.env:NOPE_X}", "Environment variable 'NOPE_X' not found"),
        ("scheduler.beta_schedule=foo", "scheduler.beta_schedule=foo cannot be used. diffusers.DDIMScheduler says"),
    ],
)
def test_a_mistake_is_explained(typed, expected, explained):
    message = explained(typed)
    assert message.startswith("error: ")
    assert expected in message
    assert len(message.splitlines()) <= 2
    assert len(message) < 1000


@pytest.mark.parametrize("typed", [["--nosuchflag"], ["--cfg", "foo"], ["--info", "foo"]])
def test_an_option_that_does_not_exist_takes_two_lines(typed, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", *typed])
    with pytest.raises(SystemExit, match="2"):
        errors.check_options()
    said = capsys.readouterr().err
    assert typed[-1] in said
    assert len(said.splitlines()) == 2


def test_cuda_is_not_promised_where_there_is_none(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    result = run_py("device=cuda", cwd=tmp_path, timeout=60)
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
