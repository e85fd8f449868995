"""The report on wandb, in its real offline files; and the dashboard that a login would make."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workspaces.wandb_file import records


@pytest.fixture
def logged(sweep, monkeypatch):
    """The sweep as it is when its runs were logged to one wandb group. Nobody is logged in."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(sweep / "no-netrc"))
    for file in sweep.glob("*/config.yaml"):
        config = yaml.safe_load(file.read_text())
        config["logger"] |= {"mode": "offline", "group": "horizons"}
        file.write_text(yaml.safe_dump(config))
    return sweep


def _written(folder: Path) -> tuple[Path, list[Any]]:
    """wandb's file and its records. Its own process writes it, and on a busy machine it is late."""
    for _ in range(600):
        for file in folder.glob("offline-run-*/*.wandb"):
            found = list(records(file))
            if any(record.WhichOneof("record_type") == "exit" for record in found):
                return file, found
        time.sleep(0.1)
    raise AssertionError("wandb has not written its file")


def test_tables_pictures_and_page_join_the_group_of_the_runs(logged, report):
    workspace = report(logged, "logger.mode=offline")
    file, found = _written(logged / "report/wandb")
    (run,) = [r.run for r in found if r.WhichOneof("record_type") == "run"]
    assert (run.job_type, run.run_group, list(run.tags)) == ("report", "horizons", ["report"])
    sent: dict[str, dict] = {}
    for item in (item for r in found if r.WhichOneof("record_type") == "history" for item in r.history.item):
        name, *detail = item.nested_key
        sent.setdefault(name, {})["/".join(detail)] = json.loads(item.value_json)
    for name, frame in workspace.tables.items():
        table = json.loads((file.parent / "files" / sent[f"report/{name}"]["path"]).read_text())
        assert table["columns"] == [str(column) for column in frame.columns]
        assert len(table["data"]) == len(frame)
    for name, path in workspace.figures.items():
        assert (file.parent / "files" / sent[f"report/figures/{name}"]["path"]).read_bytes() == path.read_bytes()
    pages = [r.artifact for r in found if r.WhichOneof("record_type") == "artifact" and r.artifact.type == "report"]
    assert [entry.path for artifact in pages for entry in artifact.manifest.contents] == ["report.html"]


def test_without_a_login_the_dashboard_is_described_and_specified(logged, report, capsys):
    report(logged, "logger.mode=disabled", "report.publish=wandb")
    assert (
        "not logged in to wandb. After `wandb login`, the same command makes the dashboard" in capsys.readouterr().err
    )
    section = json.loads((logged / "report/dashboard.json").read_text())["spec"]["section"]
    (runs,) = section["runSets"]
    assert "horizons" in json.dumps(runs["filters"])
    assert "horizon.value" in json.dumps(runs["grouping"])
    panels = json.dumps(section["panelBankConfig"])
    for shown in ("rollout/score", "train/loss", "last.score", "media/100000", "rollout/episodes"):
        assert shown in panels
    assert "media/100002" not in panels  # that episode was not recorded


def test_a_dashboard_needs_a_group(sweep, report):
    with pytest.raises(ValueError, match="needs runs of one wandb group"):
        report(sweep, "report.publish=wandb")
