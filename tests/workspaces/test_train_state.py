"""The state of a training: what it saves, it takes up again, whole."""

import copy
import time

import pytest
import torch
from hydra import compose, initialize_config_dir

from dp.modalities import Normalizer
from tests.specs import specs
from tests.test_configs import CONFIGS
from tests.workspaces.conftest import assert_equal
from workspaces import build, checkpoint
from workspaces.beginning import begin_from, choose_precision, load_run, warn_if_inexact
from workspaces.train_state import TrainState, parameter_groups

CPU = torch.device("cpu")
SPECS = specs(agent_pos=(2,), block_pose=(4,), action=(2,))


def config(*overrides: str) -> dict:
    small = ["+experiment=pusht_state_small", "denoiser.channels=[16]", "denoiser.step_embed_dim=16", *overrides]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return build.resolve(build.settings(compose("config", small)))


def fresh(seed: int) -> TrainState:
    torch.manual_seed(seed)
    return TrainState.fresh(config(), Normalizer(SPECS), CPU)


def step(state: TrainState) -> None:
    obs = {"agent_pos": torch.rand(4, 2, 2), "block_pose": torch.rand(4, 2, 4)}
    loss = state.policy.loss({"obs": obs, "action": torch.rand(4, 16, 2)})
    state.optimizer.zero_grad()
    loss.backward()
    state.optimizer.step()
    state.lr_schedule.step()
    state.ema.update(state.policy)
    state.step += 1
    state.pending.append(torch.stack([loss.detach(), torch.tensor(1.0)]))


def trained() -> TrainState:
    state = fresh(0)
    for _ in range(3):
        step(state)
    state.evaluated, state.metrics_offset, state.timer.before_s = True, 123, 1000.0
    state.best = [{"step": 2, "file": "best-000002-0.500.pt", "score": 0.5}]
    state.precision = "bf16"
    return state


def test_everything_that_is_saved_is_taken_up(tmp_path):
    saved = trained().state_dict()
    checkpoint.save(tmp_path / "last.pt", saved)
    other = fresh(1)
    other.load_state_dict(checkpoint.load(tmp_path / "last.pt"))
    other.precision = "bf16"
    again = other.state_dict()
    assert again.pop("training_s") == pytest.approx(saved.pop("training_s"), abs=60)
    assert_equal(again, saved, "state")


def test_the_next_step_is_the_same_to_the_bit():
    state, other = trained(), fresh(1)
    other.load_state_dict(copy.deepcopy(state.state_dict()))  # torch's optimizers share what they load
    rng = torch.get_rng_state()
    step(state)
    torch.set_rng_state(rng)
    step(other)
    for part in ("policy", "ema", "optimizer", "lr_schedule", "step", "pending"):
        assert_equal(state.state_dict()[part], other.state_dict()[part], part)


def test_a_state_of_an_earlier_version_is_taken_up():
    saved = trained().state_dict()
    del saved["precision"], saved["n_threads"]
    other = fresh(1)
    other.load_state_dict(saved)
    assert other.step == 3
    assert other.n_threads is None


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    state = trained()
    state.pending.append(torch.tensor([float("nan"), 1.0]))
    with pytest.raises(ValueError, match="training diverged at step 3: loss nan"):
        state.save(tmp_path, {})
    assert not (tmp_path / "checkpoints").exists()


def test_saving_deletes_what_is_no_longer_among_the_best(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("best-000001-0.100.pt", "best-000002-0.500.pt"):
        (folder / name).touch()
    trained().save(tmp_path, {})
    assert sorted(file.name for file in folder.iterdir()) == ["best-000002-0.500.pt", "last.pt"]


def test_a_run_with_other_settings_is_refused_and_one_elsewhere_is_not(tmp_path):
    assert load_run(tmp_path, config()) is None
    trained().save(tmp_path, {"config": config()})
    elsewhere = ("device=cpu", "n_threads=3", "workspace.num_steps=7", "env_runner.n_workers=0", "dataset.path=x")
    assert load_run(tmp_path, config(*elsewhere))
    for other in ("optimizer.lr=1e-5", "seed=4", "env_runner.n_episodes=3", "workspace.n_best=9", "dataset.sha256=x"):
        with pytest.raises(ValueError, match=f"holds another run: {other.partition('=')[0]}="):
            load_run(tmp_path, config(other))


def test_a_run_that_lost_its_last_checkpoint_does_not_begin_again(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    best = tmp_path / "checkpoints/best-000004-0.115.pt"
    best.touch()
    with pytest.raises(ValueError, match=rf"has lost checkpoints/last.pt.*init_from={best}"):
        load_run(tmp_path, config())
    (tmp_path / "checkpoints/last.pt").mkdir()
    with pytest.raises(ValueError, match="there is no such file"):
        load_run(tmp_path, config())


def test_auto_means_what_it_meant_and_choosing_draws_no_random_number():
    rng = torch.get_rng_state()
    assert choose_precision("auto", CPU, None) in ("fp32", "bf16")
    assert torch.equal(torch.get_rng_state(), rng)
    assert (
        choose_precision("auto", CPU, {"precision": "bf16", "config": {"workspace": {"precision": "bf16"}}}) == "bf16"
    )
    assert choose_precision("auto", CPU, {"config": {"workspace": {"precision": "bf16"}}}) == "bf16"
    assert (
        choose_precision("fp32", CPU, {"precision": "bf16", "config": {"workspace": {"precision": "bf16"}}}) == "fp32"
    )


def test_an_option_gives_the_encoder_and_the_norms_settings_of_their_own():
    state = TrainState.fresh(config(), Normalizer(SPECS), CPU)
    policy, n = state.policy, len(list(state.policy.parameters()))
    assert parameter_groups(policy, {"encoder_lr": None, "norm_decay": None}) == list(policy.parameters())
    policy.encoder.scale = torch.nn.Parameter(torch.ones(3, 2))
    groups = parameter_groups(policy, {"encoder_lr": 1e-5, "norm_decay": 0.0})
    assert sum(len(group["params"]) for group in groups) == n + 1
    assert "lr" not in groups[0]
    assert {p.ndim for group in groups if "weight_decay" in group for p in group["params"]} == {1}
    assert all(p.ndim > 1 for group in groups if "weight_decay" not in group for p in group["params"])
    (encoder,) = [group for group in groups if "lr" in group]
    assert encoder["lr"] == 1e-5
    assert encoder["params"] == [policy.encoder.scale]
    optimizer = build.optimizer(config("optimizer.norm_decay=0"), groups)
    assert [group["weight_decay"] for group in optimizer.param_groups].count(0) == 1


def test_fine_tuning_begins_with_the_averaged_weights_and_their_normalisation(tmp_path):
    old, new = trained(), fresh(5)
    old.policy.normalizer.action_scale.fill_(3.0)
    old.ema.model.normalizer.action_scale.fill_(3.0)
    checkpoint.save(tmp_path / "old/checkpoints/last.pt", {**old.state_dict(), "config": config()})
    begin_from(new, config(f"init_from={tmp_path}/old"), tmp_path / "new")
    for policy in (new.policy, new.ema.model):
        assert_equal(dict(policy.state_dict()), dict(old.ema.model.state_dict()), "weights")
    assert (new.step, new.ema.num_updates, new.optimizer.state_dict()["state"]) == (0, 0, {})

    new.policy.normalizer.action_scale.fill_(7.0)
    checkpoint.save(tmp_path / "new/checkpoints/last.pt", {**new.state_dict(), "config": config()})
    again = fresh(6)
    begin_from(
        again, config(f"init_from={tmp_path}/deleted"), tmp_path / "new"
    )  # a run that has begun needs the file no more
    assert again.policy.normalizer.action_scale[0] == 7


def test_fine_tuning_names_what_does_not_fit(tmp_path):
    checkpoint.save(tmp_path / "old.pt", {**trained().state_dict(), "config": config()})
    torch.manual_seed(0)
    other = TrainState.fresh(config("denoiser.channels=[32]"), Normalizer(SPECS), CPU)
    with pytest.raises(
        ValueError, match=r"^init_from=\S+old.pt is of another architecture: denoiser\S+ is \[.*\], exp"
    ):
        begin_from(other, config(f"init_from={tmp_path}/old.pt"), tmp_path / "new")
    with pytest.raises(ValueError, match=r"^init_from=\S+nowhere.pt: there is no such file"):
        begin_from(other, config(f"init_from={tmp_path}/nowhere.pt"), tmp_path / "new")


def test_fine_tuning_for_something_else_is_said(tmp_path, caplog):
    """Weights of the same shapes may have been trained for another window or another target."""
    checkpoint.save(tmp_path / "old.pt", {**trained().state_dict(), "config": config()})
    init = f"init_from={tmp_path}/old.pt"
    begin_from(fresh(1), config(init, "optimizer.lr=1e-5", "scheduler=ddpm", "name=tuned"), tmp_path / "new")
    assert not any("something else" in message for message in caplog.messages)
    begin_from(fresh(1), config(init, "horizon=12", "scheduler.prediction_type=sample"), tmp_path / "new")
    assert "horizon=16 there, 12 here, scheduler.prediction_type=epsilon there, sample here" in caplog.messages[-1]


def test_groups_of_the_optimizer_are_taken_up_again(tmp_path):
    def begun() -> TrainState:
        policy = build.policy(settings, Normalizer(SPECS))
        policy.encoder.scale = torch.nn.Parameter(torch.ones(3, 2))
        optimizer = build.optimizer(settings, parameter_groups(policy, settings["optimizer"]))
        return TrainState(policy, build.ema(settings, policy), optimizer, build.lr_schedule(settings, optimizer))

    settings = config("optimizer.encoder_lr=1e-5", "optimizer.norm_decay=0")
    old, new = begun(), begun()
    for _ in range(3):
        step(old)
    old.save(tmp_path, {"config": settings})
    new.load_state_dict(load_run(tmp_path, settings))
    assert_equal(new.optimizer.state_dict(), old.optimizer.state_dict(), "optimizer")
    torch.manual_seed(1)
    step(old)
    torch.manual_seed(1)
    step(new)
    assert_equal(dict(new.policy.state_dict()), dict(old.policy.state_dict()), "policy")
    assert len({group["lr"] for group in new.optimizer.param_groups}) == 2
    with pytest.raises(ValueError, match=r"optimizer.encoder_lr=1e-05, but this encoder has no weights"):
        TrainState.fresh(settings, Normalizer(SPECS), CPU)


def test_a_run_of_fewer_steps_than_it_has_done_is_refused(tmp_path):
    trained().save(tmp_path, {"config": config()})
    assert load_run(tmp_path, config("workspace.num_steps=3"))
    with pytest.raises(ValueError, match=r"workspace.num_steps=2, but the run in .* has already done 3 steps"):
        load_run(tmp_path, config("workspace.num_steps=2"))


def test_computing_otherwise_than_before_is_said(caplog):
    saved = {"precision": "fp32", "n_threads": torch.get_num_threads() + 1}
    warn_if_inexact({**saved, "n_threads": torch.get_num_threads()}, "fp32")
    warn_if_inexact({}, "fp32")  # of an earlier version
    assert not caplog.messages
    warn_if_inexact(saved, "bf16")
    assert "workspace.precision=bf16 (before: fp32) and n_threads=" in caplog.messages[0]


@pytest.mark.parametrize(("write_s", "since_s", "pays"), [(0.5, 1, True), (3, 30, False), (3, 61, True)])
def test_a_periodic_checkpoint_takes_little_of_the_time(tmp_path, monkeypatch, write_s, since_s, pays):
    state, now = trained(), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "save", lambda *_: now.__setitem__(0, now[0] + write_s))
    assert state.saving_pays()  # nothing has been written yet
    state.save(tmp_path, {})
    now[0] += since_s
    assert state.saving_pays() == pays
