"""The report on wandb: its tables and pictures as a run of the group, and a dashboard of the group."""

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dp.files import write_json

log = logging.getLogger(__name__)

CURVES = {
    "Score": ["rollout/score", "rollout/success", "rollout/train_score"],
    "Training": ["train/loss", "val/loss", "val/action_mse", "train/lr", "train/grad_norm", "train/samples_per_s"],
}
"""Section of the dashboard -> metrics drawn over the optimizer step."""


def publish(
    target: Path,
    project: str,
    group: str,
    settings: Collection[str],
    seeds: Collection[int],
    quantities: Collection[str] = (),
) -> None:
    """Makes the dashboard of `group` on wandb; without a login, describes it.

    Its specification is written to `target` either way. Raises ValueError if wandb's library for it is missing.

    Args:
        settings: configuration keys, with dots, that the runs are grouped by.
        seeds: of the episodes that have videos.
        quantities: keys of the environment's named quantities at the end.
    """
    import wandb

    online = wandb.login(prompt=False, verify=False)
    entity = wandb.Api().default_entity if online else "you"
    made = _dashboard(entity or "you", project, group, settings, seeds, quantities)
    write_json(target, json.loads(made._to_model().model_dump_json(by_alias=True)))
    panels = ", ".join(f"{section.name} ({len(section.panels)} panels)" for section in made.sections)
    if online:
        made.save()
        log.info("dashboard: %s", made.url)
    else:
        log.info(
            "not logged in to wandb. After `wandb login`, the same command makes the dashboard '%s' in the project %s, "
            "of the runs in the group %s: %s. Its specification: %s",
            made.name, project, group, panels, target,
        )  # fmt: skip


def _dashboard(
    entity: str,
    project: str,
    group: str,
    settings: Collection[str],
    seeds: Collection[int],
    quantities: Collection[str],
) -> Any:
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as views
    except ModuleNotFoundError as error:
        raise ValueError(f"report.publish=wandb needs more: pip install 'dp-pusht[dashboard]' ({error})") from None

    curves: dict[str, list[Any]] = {
        name: [panels.LinePlot(title=metric, x="step", y=[metric]) for metric in metrics]
        for name, metrics in CURVES.items()
    }
    curves["Score"] += [panels.LinePlot(title=name, x="step", y=[f"rollout/{name}"]) for name in quantities]
    latency, last, best = (panels.SummaryMetric(m) for m in ("rollout/inference_ms", "last.score", "best.score"))
    comparison: list[Any] = [
        panels.BarPlot(title="last score", metrics=[last]),
        panels.BarPlot(title="best score (chosen on the test seeds, so optimistic)", metrics=[best]),
        panels.ScatterPlot(title="score against latency, ms", x=latency, y=last),
    ]
    episodes: list[Any] = [
        panels.MediaBrowser(title="videos", media_keys=[f"media/{seed}" for seed in sorted(seeds)]),
        panels.WeavePanelSummaryTable(table_name="rollout/episodes"),
    ]
    sections = {"Comparison": comparison, **curves, "Episodes": episodes}
    return views.Workspace(
        entity=entity,
        project=project,
        name=f"dp {group}",
        sections=[views.Section(name=name, panels=shown, is_open=True) for name, shown in sections.items()],
        runset_settings=views.RunsetSettings(
            filters=[views.Metric("Group") == group],
            groupby=[views.Config(key) for key in settings],
        ),
    )
