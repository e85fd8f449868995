"""`run_dir=DIR` alone: what is taken up, what is refused, and what is said to go on."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from tests.workspaces.test_train_state import config as composed
from workspaces import resume

CHOICES = {"task": "pusht_state", "dataset": "pusht", "encoder": "state", "workspace": "train"}


@pytest.fixture(autouse=True)
def hydra(monkeypatch):
    """What a start of `run.py` finds: the groups, of which any may have been chosen."""
    started = SimpleNamespace(runtime=SimpleNamespace(choices=CHOICES))
    monkeypatch.setattr(resume.HydraConfig, "get", lambda: started)


@pytest.fixture(scope="module")
def begun():
    return composed("optimizer.lr=5e-4", "workspace.num_steps=20", "seed=3")


@pytest.fixture
def run_dir(tmp_path, begun):
    write(tmp_path, begun)
    return tmp_path


def write(folder, config) -> None:
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))


def taken_up(run_dir, *typed):
    return resume.own_config({"run_dir": str(run_dir)}, [f"run_dir={run_dir}", *typed])


def test_a_run_is_taken_up_with_its_own_settings(run_dir, begun):
    config = taken_up(run_dir, "workspace.num_steps=40", "n_threads=2", "workspace.every={log: 100}")
    assert config["workspace"].pop("num_steps") == 40
    assert (config.pop("n_threads"), config.pop("run_dir")) == (2, str(run_dir))
    expected = copy.deepcopy(begun)
    for key in ("n_threads", "run_dir"):
        expected.pop(key)
    expected["workspace"].pop("num_steps")
    assert config == expected


@pytest.mark.parametrize("typed", ["seed=4", "optimizer.lr=1e-3", "env_runner.n_episodes=7", "+encoder.new=1"])
def test_what_a_run_must_keep_is_refused_with_what_to_type(run_dir, typed):
    with pytest.raises(ValueError, match=r"holds another run: \S+=\S+ there, \S+ here.*python run.py run_dir="):
        taken_up(run_dir, typed)


def test_a_choice_of_a_group_composes_as_ever(run_dir):
    assert taken_up(run_dir, "encoder=state") is None


def test_an_empty_directory_is_begun_only_where_it_is_said_what_with(tmp_path):
    with pytest.raises(ValueError, match="holds no run to resume"):
        taken_up(tmp_path / "typo", "device=cpu", "workspace.num_steps=9")
    assert taken_up(tmp_path / "new", "horizon=8") is None


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("optimizer", "os.mkdir"),
        ("lr_schedule", "shutil.copyfile"),
        ("ema", "dp.files.write_json"),
        ("logger", "os.system"),
        ("encoder", "os.mkdir"),
        ("dataset", "torch.load"),
        ("env_runner", "mylab.Runner"),
    ],
)
def test_a_strangers_directory_runs_no_code(tmp_path, begun, place, target):
    config = copy.deepcopy(begun)
    config[place]["_target_"] = target
    write(tmp_path, {**config, "trust": ["os", "shutil", "torch", "mylab"]})  # nobody trusts on his own behalf
    with pytest.raises(ValueError, match=rf"{place}\._target_={target}, which is not to be trusted"):
        taken_up(tmp_path)


def test_a_nested_target_is_refused(tmp_path, begun):
    config = copy.deepcopy(begun)
    config["optimizer"]["betas"] = {"_target_": "os.mkdir", "path": "x"}
    write(tmp_path, config)
    with pytest.raises(ValueError, match="not to be trusted"):
        taken_up(tmp_path)


@pytest.mark.parametrize("text", ["", "a: [", "workspace: 3", "- 1", "a: ${oc.env:HOME}", "a: &a [*a]"])
def test_a_damaged_configuration_is_an_error_of_one_line(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config.yaml") as error:
        taken_up(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["n_threads", "device", "name", "horizon", "scheduler", "optimizer", "seed"])
def test_a_configuration_that_has_lost_a_setting_names_it(tmp_path, begun, missing):
    write(tmp_path, {key: value for key, value in begun.items() if key != missing})
    with pytest.raises(ValueError, match=rf"config\.yaml.*{missing}"):
        taken_up(tmp_path)


def test_a_number_that_python_does_not_read_is_damage(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: " + "9" * 6000)
    with pytest.raises(ValueError, match=r"config\.yaml is damaged"):
        taken_up(tmp_path)


def test_a_link_is_not_followed(tmp_path, run_dir):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/config.yaml").symlink_to(run_dir / "config.yaml")
    with pytest.raises(ValueError, match="is not the configuration of a run"):
        taken_up(tmp_path / "linked")


def test_an_evaluation_does_not_go_on_by_itself(tmp_path, begun):
    write(tmp_path, {**begun, "workspace": {"_target_": "workspaces.evaluate.EvaluateWorkspace"}})
    with pytest.raises(ValueError, match="holds no training"):
        taken_up(tmp_path)


def test_the_recorded_overrides_stay_those_that_the_run_was_begun_with(tmp_path):
    """A sweep knows its jobs by them."""
    begun = ["+experiment=pusht_state_small", "seed=1", "workspace.num_steps=10"]
    (tmp_path / "run.json").write_text(json.dumps({"state": "interrupted", "overrides": begun}))
    now = resume.recorded(tmp_path, ["run_dir=x", "workspace.num_steps=20"])
    assert now == ["+experiment=pusht_state_small", "seed=1", "run_dir=x", "workspace.num_steps=20"]


def test_the_command_names_packages_that_the_file_alone_cannot_be_trusted_with(tmp_path, begun):
    assert resume.how_to_resume(tmp_path / "a", begun) == f"python run.py run_dir={tmp_path}/a"
    config = copy.deepcopy(begun)
    config["encoder"]["_target_"], config["optimizer"]["_target_"] = "mylab.Encoder", "torch.optim.SGD"
    assert resume.how_to_resume(tmp_path / "a", config).endswith("'trust=[mylab,torch]'")
    write(tmp_path, {**begun, "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}})
    assert taken_up(tmp_path, "trust=[torch]")["optimizer"]["_target_"] == "torch.optim.SGD"


def test_files_of_the_first_version_are_taken_up(tmp_path):
    from pathlib import Path

    old = Path(__file__).parents[1] / "data/v1/run"
    config = resume.own_config({"run_dir": str(old)}, [f"run_dir={old}"])
    state = torch.load(old / "checkpoints/last.pt", weights_only=True)
    assert config["workspace"]["num_steps"] == state["config"]["workspace"]["num_steps"]
