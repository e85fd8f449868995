"""The table of keys: complete, and what derives from it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from workspaces import evaluate, resume, settings, sweep
from workspaces.report import failure_map, recipe, runs, tables

CONFIGS = Path(__file__).parent.parent.parent / "configs"


def files() -> Iterator[Path]:
    return iter(sorted(p for p in CONFIGS.rglob("*.yaml") if p.name != "config.yaml"))


def written(file: Path) -> set[str]:
    """The keys that a file of configs/ sets, from the root on."""
    text = file.read_text()
    content = {key: value for key, value in yaml.safe_load(text).items() if key != "defaults"}
    if not content:  # another name for other files
        return set()
    group = file.parent.relative_to(CONFIGS).as_posix().replace("/", ".")
    return set(settings.flatten(content if "@package _global_" in text else {group: content}))


def every_key() -> set[str]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        default = OmegaConf.to_container(compose("config"))
    assert isinstance(default, dict)
    return set(settings.flatten(default)).union(*map(written, files()))


def test_every_key_of_every_configuration_has_a_role():
    keys = every_key()
    assert {"workspace.filter.success_only", "report.baseline", "n_threads", "hydra.launcher.n_jobs"} <= keys
    assert not sorted(key for key in keys if settings.known_role(key) is None)


@pytest.mark.parametrize("key", ["colour", "workspace.num_stps", "env_runner.colour"])
def test_a_key_that_nobody_gave_a_role_has_none_and_counts_as_identity(key):
    assert settings.known_role(key) is None
    assert settings.role(key) == "identity"


def test_no_key_has_two_roles():
    keys = [key for entry in settings.TABLE.values() for key in entry.keys.split()]
    assert len(keys) == len(set(keys))


def test_prefixes_select_the_keys_of_their_roles_and_no_others():
    lists = {
        resume.MAY_DIFFER: {"length", "source", "speed", "arithmetic", "place", "output", "verb"},
        tables.NO_SETTING: set(settings.TABLE) - {"identity", "training", "length", "sampling", "guidance"},
        recipe.OF_THE_PLACE: {"data", "source", "speed", "place", "output", "verb", "outside"},
    }
    coming = {"kernels", "trust", "task.name", "task.protocols.x.max_steps", "env_runner.protocol", "init_from"}
    for prefixes, roles in lists.items():
        for key in every_key() | coming | {"training.num_steps", "objective.n_times", "dataset.sha256"}:
            assert key.startswith(prefixes) == (settings.role(key) in roles), key


def test_the_lists_of_old_are_what_they_were():
    assert {"run_dir", "device", "n_threads", "checkpoint", "logger", "dataset.path", "dataset.source",
            "env_runner.n_workers", "env_runner.n_envs", "workspace.num_steps", "workspace.loader",
            "workspace.n_loader_workers", "workspace.engine", "workspace.precision"} <= {
                *resume.MAY_DIFFER}  # fmt: skip
    assert set(evaluate.SCHEDULE) == {
        "num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type"
    }  # fmt: skip
    assert set(evaluate.OWN) >= {
        "debug",
        "workspace",
        "checkpoint",
        "device",
        "run_dir",
        "n_threads",
        "env_runner",
        "logger",
    }
    assert set(evaluate.MAY_OVERRIDE) - set(evaluate.OWN) == {"scheduler", "n_action_steps"}
    assert {"name", "task", "encoder", "denoiser", "horizon", "n_obs_steps", "noise_draws"} <= set(runs.FIXED)
    assert set(failure_map.OVERRIDDEN) >= {
        "run_dir", "env_runner.start_seed", "env_runner.n_episodes", "env_runner.n_videos", "logger", "workspace",
        "checkpoint", "hydra",
    }  # fmt: skip
    assert not {"device", "n_threads", "trust", "scheduler", "env_runner", "env_runner.max_steps"} & {
        *failure_map.OVERRIDDEN
    }


@pytest.mark.parametrize("override", ["logger.mode=disabled", "device=cpu", "n_threads=1", "+launcher=joblib"])
def test_a_job_is_the_same_wherever_it_runs(override):
    job = sweep.Job("a", "train", ("horizon=8", override))
    assert job.identity == {"horizon=8"}


@pytest.mark.parametrize("override", ["dataset.path=x", "seed=1", "workspace.precision=bf16", "env_runner.n_workers=0"])
def test_a_job_with_other_settings_is_another_job(override):
    assert override in sweep.Job("a", "train", ("horizon=8", override)).identity


def test_no_key_is_the_beginning_of_one_with_another_role():
    """`keys_with` gives prefixes: workspace.n would take workspace.num_steps along."""
    for role in settings.TABLE:
        for prefix in settings.keys_with(role):
            for key in settings._ROLES:
                at_a_dot = key.removeprefix(prefix).startswith(".")
                if key.startswith(prefix) and key != prefix and not at_a_dot:
                    assert settings.known_role(key) == role, (prefix, key)
