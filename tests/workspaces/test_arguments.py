"""A value that an argument cannot have is refused, in one line with its key, before anything is read or written."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Interval, Len
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from tests.cli import RUN
from workspaces import build
from workspaces.arguments import check_arguments, fits, shown, words


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    typed = ["+experiment=pusht_state_small", "logger.mode=disabled", "n_threads=1", "device=cpu"]
    with initialize_config_dir(str(RUN.parent / "configs"), version_base="1.3"):
        return compose("config", typed)


COUNT = "expected a whole number of at least"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed", 1.5, COUNT),
        ("seed", 10**20, "expected a whole number of at least 0 and at most"),
        ("horizon", 10**6, "at most 1024"),
        ("horizon", None, "horizon=null, expected a whole number of at least 1"),
        ("noise_draws", 0, COUNT),
        ("n_threads", 10**6, "at most 1024"),
        ("n_threads", True, "n_threads=true, expected auto or a whole number"),
        ("kernels", "fast", "expected auto or reference"),
        ("run_dir", 5, "expected a text or null"),
        ("checkpoint", ["a"], r"checkpoint=\[a\], expected a text or null"),
        ("name", "../../x", "expected a name"),
        ("name", "", "expected a name"),
        ("denoiser.channels", [], "expected a list of whole numbers"),
        ("denoiser.channels", [16.5, 32], r"denoiser.channels=\[16.5, 32\], expected a list of whole numbers"),
        ("denoiser.channels", 64, "expected a list of whole numbers"),
        ("denoiser.channels", [10**6], "at most 65536"),
        ("denoiser.kernel_size", -3, COUNT),
        ("denoiser.step_embed_dim", 3, "at least 4 and divisible by 2"),
        ("denoiser.norm", "batch", "denoiser.norm=batch, expected group or layer"),
        ("denoiser.film", "foo", "expected scale_bias, residual or bias"),
        ("denoiser.skip", math.nan, "expected concat or add"),
        ("denoiser.dropout", 0.1, "unknown key denoiser.dropout: UNet1d has no such argument"),
        ("denoiser.chanels", [16], "unknown key denoiser.chanels.*Did you mean channels"),
        ("denoiser", None, "denoiser=null, expected a choice"),
        ("scheduler.beta_end", 5, "expected a number above 0 and below 1"),
        ("scheduler.beta_schedule", "foo", "scheduler cannot be used.*foo is not implemented"),
        ("scheduler.clip_sample", "maybe", "expected true or false"),
        ("scheduler.solver_order", 9, "expected 1, 2 or 3"),
        ("scheduler.num_train_timesteps", 10**9, "at most 10000"),
        ("scheduler.prediction_type", "eps", "expected epsilon, sample or v_prediction"),
        ("optimizer.lr", "1e-4x", "optimizer.lr=1e-4x, expected a number"),
        ("optimizer.lr", math.inf, "expected a number"),
        ("optimizer.fused", "abc", "expected true or false or null"),
        ("optimizer.betas", [0.9], r"expected \[a number, a number\]"),
        ("lr_schedule.num_warmup_steps", -1, COUNT),
        ("ema.power", -1, "ema.power=-1, expected a number above 0"),
        ("ema.max_decay", 2, "at most 1"),
        ("env_runner.n_episodes", 1.5, COUNT),
        ("env_runner.start_seed", 5 * 10**9, "at most 4294967295"),
        ("env_runner.n_workers", "abc", "expected auto or a whole number"),
        ("env_runner.max_steps", {1: 2}, "expected a whole number"),
        ("dataset.mirror", "maybe", "dataset.mirror=maybe, expected true or false"),
        ("dataset.val_ratio", 1.0, "below 1"),
        ("dataset.source", "elsewhere", "expected auto, official or bundled"),
        ("task.env._partial_", "abc", "task.env._partial_=abc, expected true or false"),
        ("task.env._target_", -1, "task.env._target_=-1, expected a text"),
        ("task.name", "", "task.name='', expected a text"),  # checkpoints that say so are refused
        ("trust", "mylab", "trust=mylab, expected a list of texts"),
        ("checkpoint", "last.pt", "checkpoint=.* init_from=PATH"),
        ("env_runner", None, "env_runner=null, expected a choice"),
        ("optimizer.lr", 1e30, "at most 1000000000"),
        ("dataset.sha256", "abc", "dataset.sha256='abc', expected a text"),
        ("encoder._target_", "abc", "encoder: Expected a callable target"),
        ("task.shape_meta", None, "task.shape_meta=null, expected keys with values"),
        ("task.shape_meta", "???", "task.shape_meta is missing, expected a value: give 'task.shape_meta={obs"),
        ("task.shape_meta.action.shape", [2, "x"], "task.shape_meta: action.shape"),
        ("workspace.batch_size", 10**9, "workspace.batch_size=1000000000"),
        ("workspace.every.log", 0, "workspace.every.log=0, " + COUNT),
        ("workspace.every", 5, "workspace.every=5, expected {log"),
        ("workspace.n_best", "abc", COUNT),
        ("workspace.n_loader_workers", -1, COUNT),
        ("workspace.max_grad_norm", 0, "expected a number above 0"),
        ("workspace._target_", "os.system", "expected a verb: train"),
        ("logger.mode", "on", "expected auto, online, offline or disabled"),
        ("seed", "${nope}", "seed: Interpolation key 'nope' not found"),
    ],
)
def test_a_value_is_refused_with_its_key_and_what_it_must_be(
    key: str, value: Any, expected: str, composed: DictConfig
) -> None:
    config = composed.copy()
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    with pytest.raises(ValueError, match=expected) as error:
        build.workspace(config)
    assert key.partition(".")[0] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_quick_trial_shrinks_only_what_a_network_has(composed: DictConfig) -> None:
    config = composed.copy()
    shrink = {"denoiser.channels": [8, 16], "denoiser.width": 8}
    OmegaConf.update(config, "debug", {"shrink": shrink}, merge=False, force_add=True)
    denoiser = build.workspace(config).config["denoiser"]
    assert denoiser["channels"] == [8, 16]
    assert "width" not in denoiser


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("workspace.max_grad_norm", math.inf),
        ("optimizer.fused", None),
        ("optimizer.lr", 1),
        ("dataset.path", ["a", "b"]),
        ("env_runner.n_workers", "auto"),
        ("denoiser.film", "bias"),
        ("task.env", None),
    ],
)
def test_values_that_make_sense_pass(key: str, value: Any, composed: DictConfig) -> None:
    config = composed.copy()
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    build.workspace(config)


def test_what_a_constructor_refuses_is_said_with_what_it_was_given(composed: DictConfig) -> None:
    config = build.resolve(build.settings(composed))
    config["denoiser"] |= {"norm": "group", "channels": [20, 32]}
    with pytest.raises(ValueError, match=r"^denoiser\.channels=\[20, 32\], expected multiples of n_groups=8"):
        build.policy(config)
    config["optimizer"]["betas"] = [1, 2]
    with pytest.raises(ValueError, match=r"^optimizer cannot be used\. torch\.optim\.AdamW says: Invalid beta"):
        build.optimizer(config, [])


def test_networks_that_do_not_fit_are_refused_before_they_take_memory(composed: DictConfig) -> None:
    config = build.resolve(build.settings(composed))
    config["denoiser"]["channels"] = [60_000] * 6
    with pytest.raises(ValueError, match=r"its weights take more than .* GB"):
        build.policy(config)


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (int, [0, -3], [True, 1.0, "1", None]),
        (float, [1, 0.5], [math.nan, math.inf, True, "x"]),
        (bool, [True], [1, "true"]),
        (float | Tensor, [1.0], ["x"]),
        (str | None, ["x", None], [3]),
        (Literal["a", 1], ["a", 1], ["b", True, 1.0]),
        (tuple[float, float], [[1, 2.0]], [[1], 1, ["a", "b"]]),
        (Annotated[Sequence[int], Len(1)], [[1]], [[], "1", [1.5]]),
        (Annotated[float, Interval(gt=0, le=math.inf)], [1, math.inf], [0, math.nan, -math.inf]),
        (Annotated[int, Ge(1)] | None, [1, None], [0]),
        (Mapping[str, Annotated[int, Ge(1)]], [{"a": 1}], [{"a": 0}, [1], None]),
        (Tensor, ["anything"], []),
        (Any, [None, [1]], []),
    ],
)
def test_plain_values_are_compared_with_annotations(annotation: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not fits(value, annotation)] == []
    assert [value for value in bad if fits(value, annotation)] == []


def test_words_name_a_far_limit_only_beyond_it() -> None:
    size = Annotated[int, Interval(ge=1, le=1024)] | Literal["auto"]
    assert words(size, "abc") == "a whole number of at least 1 or auto"
    assert words(size, 5000) == "a whole number of at least 1 and at most 1024 or auto"


def test_a_missing_argument_is_named() -> None:
    def make(width: int, depth: int = 1) -> None: ...

    check_arguments("net", make, {"width": 1})
    check_arguments("net", make, {}, given=["width"])
    with pytest.raises(ValueError, match=r"net\.width is missing"):
        check_arguments("net", make, {"depth": 2})


def test_values_are_shown_as_they_are_typed() -> None:
    assert [shown(value) for value in (None, True, ["a", None], 1.5, "")] == ["null", "true", "[a, null]", "1.5", "''"]
    assert len(shown("x" * 1000)) == 80
