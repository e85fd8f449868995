"""No launcher gives a GPU to two jobs, or none to any."""

import re

import pytest

from workspaces.gpus import check_launcher, device_of

JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"
LOCAL = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


@pytest.mark.parametrize(
    ("launcher", "told"),
    [
        ({"_target_": JOBLIB, "n_jobs": -1}, "hydra.launcher.n_jobs=2"),
        ({"_target_": JOBLIB, "n_jobs": 3}, "hydra.launcher.n_jobs=2"),
        ({"_target_": RAY, "ray": {"remote": {"num_cpus": 1, "num_gpus": 0}}}, "hydra.launcher.ray.remote.num_gpus=1"),
        ({"_target_": LOCAL}, "+launcher=joblib hydra.launcher.n_jobs=2"),
    ],
)
def test_a_launcher_that_shares_or_hides_gpus_is_refused_where_there_are_any(launcher: dict, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        check_launcher(launcher, "auto", 2)
    check_launcher(launcher, "auto", 0)
    check_launcher(launcher, "cpu", 2)


@pytest.mark.parametrize(
    "launcher",
    [
        {"_target_": JOBLIB, "n_jobs": 2},
        {"_target_": RAY, "ray": {"remote": {"num_gpus": 1}}},
        {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"},
        {"_target_": BASIC},
    ],
)
def test_a_launcher_with_a_gpu_a_job_is_not(launcher: dict) -> None:
    check_launcher(launcher, "auto", 2)


def test_joblibs_jobs_take_turns_on_the_gpus_unless_one_was_chosen() -> None:
    joblib = {"_target_": JOBLIB, "n_jobs": 2}
    assert [device_of(i, joblib, "auto", 2) for i in range(3)] == [
        ["device=cuda:0"],
        ["device=cuda:1"],
        ["device=cuda:0"],
    ]
    assert device_of(1, joblib, "cuda:0", 2) == device_of(1, joblib, "auto", 0) == device_of(1, joblib, "cpu", 2) == []
    assert device_of(1, {"_target_": BASIC}, "auto", 2) == []
