"""The model card of a policy: its results with protocol and intervals, its training, its data and versions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workspaces import command, record
from workspaces.improve import FILE as IMPROVE

HEADER = """---
library_name: {library}
pipeline_tag: robotics
tags: [robotics, diffusion-policy, {task}]
---
# {name}

A policy for {task}: {parameters:.1f} million weights, trained for {step} steps.
"""

LOADING = {
    "dp": """
## Use

```python
from dp.policy import DiffusionPolicy

policy = DiffusionPolicy.from_pretrained("{name}")  # this folder, or the repository that it was uploaded to
actions = policy.act(obs)  # raw observations (B, {n_obs_steps}, ...) -> (B, {n_action_steps}, {action_dim})
```
""",
    "lerobot": """
## Use

```python
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.factory import make_pre_post_processors

policy = DiffusionPolicy.from_pretrained("{name}")  # this folder, or the repository that it was uploaded to
before, after = make_pre_post_processors(policy.config, "{name}")
action = after(policy.select_action(before(observation)))
```
""",
}
"""How to load a policy, by the library that does it."""

PLACES = ("run_dir=", "n_threads=", "logger.", "env_runner.n_workers=", "dataset.path=", "init_from=")
"""Overrides that say only where and how fast a command runs."""


def card(
    state: Mapping[str, Any], config: Mapping[str, Any], run_dir: Path, evaluations: Sequence[Path], library: str = "dp"
) -> str:
    """The text of README.md for the averaged policy in `state`, trained in `run_dir` and tested in `evaluations`.

    library: which loads it, dp or lerobot.
    """
    weights, task = state["ema"]["model"], config["task"]
    parts = [
        HEADER.format(
            name=config["name"], task=task["name"], step=state["step"], library=library,
            parameters=sum(tensor.numel() for tensor in weights.values()) / 1e6,
        ),
        _results(run_dir if _as_trained(state, config) else None, evaluations),
        _training(state, config, run_dir),
        LOADING[library].format(
            name=config["name"], n_obs_steps=config["n_obs_steps"], n_action_steps=config["n_action_steps"],
            action_dim=task["shape_meta"]["action"]["shape"][0],
        ),
    ]  # fmt: skip
    return "".join(parts)


def _as_trained(state: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether the last rollout of the training tested this policy: its last step, and the same sampler."""
    trained = state["config"]
    chosen = all(config.get(key) == trained.get(key) for key in ("scheduler", "n_action_steps"))
    return chosen and state["step"] == (trained.get("workspace") or {}).get("num_steps")


def _results(run_dir: Path | None, evaluations: Sequence[Path]) -> str:
    from workspaces.report import runs, tables  # here, because it imports matplotlib

    found = [run for path in evaluations for run in runs.find(path, key="workspace.evaluations").finished]
    if not found and run_dir is not None and record.read_or_none(run_dir) is not None:
        found = runs.find(run_dir, key="checkpoint").finished
    results = tables.results(found)
    if not results:
        return "\nIt has not been tested.\n"
    lines = ["", "## Results", "", "| protocol | episodes | score [95 %] | success [95 %] |", "|---|---|---|---|"]
    for result in results:
        seeds = f"seeds {result.protocol.first}–{result.protocol.last}"
        numbers = tables.interval(result.score), tables.interval(result.success, percent=True)
        lines.append(f"| {result.protocol}, {seeds} | {result.protocol.n_episodes} | {numbers[0]} | {numbers[1]} |")
    words = results[0].runs[0].words
    return "\n".join([*lines, "", f"Score: {words.score}. Success: {words.success}. Reset: {words.reset}.", ""])


def _training(state: Mapping[str, Any], config: Mapping[str, Any], run_dir: Path) -> str:
    about, dataset = record.read_or_none(run_dir) or {}, config.get("dataset") or {}
    machine = about.get("machine") or {}
    facts = {
        "data": f"sha256 {dataset['sha256']}" if dataset.get("sha256") else None,
        "versions": ", ".join(f"{name} {version}" for name, version in state["versions"].items()),
        "code": about.get("commit"),
        "machine": machine.get("gpu") or machine.get("cpu"),
    }
    lines = ["", "## Training", ""]
    if commands := made_by(run_dir):
        lines += ["```", *commands, "```", ""]
    return "\n".join([*lines, *(f"* {name}: {fact}" for name, fact in facts.items() if fact), ""])


def made_by(run: Path) -> list[str]:
    """The commands that made a policy: of its improvement and of the policy before that, or of its training alone."""
    if not (run.parent / IMPROVE).is_file():
        return [typed(run)] if record.read_or_none(run) is not None else []
    begun = json.loads((run.parent / IMPROVE).read_text())["checkpoint"]
    return [*([] if begun is None else [typed(Path(begun))]), typed(run.parent)]


def typed(run: Path) -> str:
    """The command that made a run, without what only says where and how fast."""
    overrides = (record.read_or_none(run) or {}).get("overrides", [])
    kept = [one for one in overrides if not one.startswith(PLACES)]
    return command.run(*("checkpoint=PATH" if one.startswith("checkpoint=/") else one for one in kept))
