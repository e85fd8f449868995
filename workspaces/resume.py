"""Resumes a run from its own directory: `python run.py run_dir=DIR`, without other choices."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from workspaces import command, record
from workspaces.config import CONFIGS, Config
from workspaces.load import migrate
from workspaces.schema import Range, check
from workspaces.settings import BUILT, flatten, key, keys_with
from workspaces.trust import POLICY, TRUSTED, check_part, check_targets, packages_of, plain

TRAINING = "workspaces.train.TrainWorkspace"

MAX_BYTES = 1_000_000
"""Largest config.yaml that is read, in bytes."""

RUN = POLICY | {
    "device": str,
    "n_threads": (Range(1, 1024), str),
    "checkpoint": type(None),
    **dict.fromkeys(("dataset", "optimizer", "lr_schedule", "ema", "logger", "workspace"), dict),
}
"""Schema of a training's `config.yaml`, as far as nothing else checks it."""

PARTS = tuple(group for group in (*BUILT, "workspace") if group not in TRUSTED)
"""Groups that only a training instantiates."""

MAY_DIFFER = keys_with("length", "source", "speed", "arithmetic", "place", "output", "verb")
"""Keys that may differ when a run resumes."""

SAYS_NOTHING = keys_with("length", "source", "speed", "arithmetic", "place", "output")
"""Keys that do not say what to train."""


def own_config(composed: Config, typed: Sequence[str]) -> Config | None:
    """The configuration of the run in `composed["run_dir"]`, with the `typed` overrides applied to it.

    None if the user chose something (an experiment, another group), or says what to train in a new directory.

    Raises:
        ValueError: if `typed` differs from the run in a fixed setting, the directory holds no training, or its
            configuration names untrusted code.
    """
    keys = [key(override).partition("@")[0] for override in typed]
    if composed["run_dir"] is None:
        return None
    if any(key in HydraConfig.get().runtime.choices for key in keys) or any(o.startswith("~") for o in typed):
        return None
    run_dir = Path(composed["run_dir"])
    if not (run_dir / "config.yaml").exists():
        if all(key.startswith(SAYS_NOTHING) for key in keys):
            raise ValueError(f"run_dir={run_dir} holds no run to resume. To begin one there, choose +experiment=...")
        return None
    saved = _read(run_dir)
    config = _with(saved, typed)
    check_same(saved, config, run_dir, left_open=("auto", None))
    _check_code(config, config["trust"])
    return config


def hydra_run_dir() -> str | None:
    """DIR of `hydra.run.dir=DIR`, which means `run_dir=DIR`, as in other Hydra projects."""
    if HydraConfig.initialized() and any(o.startswith("hydra.run.dir=") for o in HydraConfig.get().overrides.hydra):
        return HydraConfig.get().runtime.output_dir
    return None


def check_same(saved: Config, config: Config, run_dir: Path, left_open: tuple[object, ...] = ()) -> None:
    """Raises ValueError if `run_dir` holds a run, begun with `saved`, that `config` cannot resume.

    left_open: values of `config` that something else decides.
    """
    if differing := differences(saved, config, lambda key: not key.startswith(MAY_DIFFER), left_open):
        raise ValueError(
            f"{run_dir} holds another run: {differing}. To resume it, leave these out: "
            f"{command.run(command.override('run_dir', run_dir))}. To begin another one, choose another run_dir"
        )


def differences(
    saved: Config, config: Config, counts: Callable[[str], bool], left_open: tuple[object, ...] = ()
) -> str:
    """In words, the first three keys that `counts` and whose values differ; empty where none does.

    left_open: values of `config` that differ from none.
    """
    old, new = flatten(saved), flatten(config)
    keys = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and new.get(key, "") not in left_open and counts(key)
    ]
    shown = [f"{key}={old.get(key)} there, {new.get(key)} here" for key in keys[:3]]
    return ", ".join(shown) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def recorded(run_dir: Path, typed: Sequence[str]) -> list[str]:
    """The overrides that the run was begun with, and those `typed` now."""
    now = {override.lstrip("+").partition("=")[0] for override in typed}
    before = (record.read_or_none(run_dir) or {}).get("overrides") or []
    return [*(o for o in before if o.lstrip("+").partition("=")[0] not in now), *typed]


def how_to_resume(run_dir: Path, config: Config, *more: str) -> str:
    """The command that resumes the run in `run_dir`, or extends it with the overrides `more`."""
    return command.run(
        command.override("run_dir", run_dir), *more, *command.trust([*packages_of(config), *_foreign(config)])
    )


def how_to_evaluate(file: Path, config: Config) -> str:
    """The command that evaluates the checkpoint `file` of a training."""
    return command.run("workspace=evaluate", command.override("checkpoint", file), *command.trust(packages_of(config)))


def _read(run_dir: Path) -> Config:
    file = run_dir / "config.yaml"
    if file.is_symlink() or not file.is_file() or file.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file} is not the configuration of a run: expected a file of at most {MAX_BYTES} bytes")
    try:
        config = migrate(plain(_parsed(file), str(file)))
        verb = config["workspace"]["_target_"]
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{file} is damaged ({reason}): repeat the settings that the run was begun with") from None
    if verb != TRAINING:
        raise ValueError(
            f"run_dir={run_dir} holds no training, and only trainings resume from their directory. To go on, repeat "
            f"its command: {command.run(*recorded(run_dir, []))}"
        )
    check(config, RUN, str(file))
    return config


def _parsed(file: Path) -> Any:
    text = file.read_text()
    try:
        return yaml.safe_load(text)
    except ValueError as error:  # of a number that Python does not convert
        raise yaml.YAMLError(str(error)) from None


def _with(saved: Config, typed: Sequence[str]) -> Config:
    """`saved` with typed values. The file's own `run_dir` and `trust` do not count."""
    config: Any = OmegaConf.create({**saved, "trust": []})
    for override in OverridesParser.create().parse_overrides(list(typed)):
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)
    return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]


def _check_code(config: Config, trusted: Collection[str]) -> None:
    """Raises ValueError if building a part of the training could run a stranger's code."""
    check_targets(config, trusted)
    for part in PARTS:
        check_part(config.get(part), part, _named(part), trusted)


def _named(group: str) -> set[str]:
    """The classes and functions that our own configurations of `group` name."""
    contents = [yaml.safe_load(file.read_text()) for file in (CONFIGS / group).glob("*.yaml")]
    return {content["_target_"] for content in contents if "_target_" in content} | (
        {TRAINING} if group == "workspace" else set()
    )


def _foreign(config: Config) -> set[str]:
    """Packages, ours among them, of the classes of `PARTS` that no configuration of ours names."""
    targets = {config[part]["_target_"] for part in PARTS if config[part]["_target_"] not in _named(part)}
    return {target.partition(".")[0] for target in targets}
