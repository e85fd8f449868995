"""Bundles a trained policy: python scripts/bundle_policy.py RUN FOLDER BITS [EVALUATION ...]

Writes model.safetensors, critic.safetensors if an evaluation used one, and a model card with the commands and results
of the evaluations, whose directories are given. Run it without evaluations first, evaluate FOLDER, and repeat it.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from dp.guidance.value import FILE as CRITIC
from workspaces import checkpoint, model_card, record, shipped
from workspaces.rollouts import estimate_of, text_of

CARD = """# {name}

{task}: {parameters:.1f} million weights, the matrices in {bits} bits ({megabytes:.1f} MB).

| protocol | guidance | score [95 %] | success [95 %] | ms per action chunk |
|---|---|---|---|---|
{rows}

* Score: {score}.
* Success: {success}.
* These are results of the files in this folder: one training seed, final EMA weights. Nothing sees the true state.
* Machine: {machine}.

Made by these commands, where PATH is the policy before:

```
{commands}
```
"""


def main(run: Path, folder: Path, bits: int, *evaluations: Path) -> None:
    path = checkpoint.find(str(run))
    state = checkpoint.load(path)
    config = state["config"]
    state["config"] = {**config, "run_dir": None, "init_from": None, "dataset": {**config["dataset"], "path": None}}
    shipped.write(folder / shipped.FILE, state, bits)
    commands, rows, found = model_card.made_by(path.parent.parent), [], {}
    for place in evaluations:
        found = json.loads((place / "evaluation.json").read_text())
        guidance = found["settings"]["guidance"]
        if guidance.get("path"):
            critic = Path(guidance["path"])
            if (critic / CRITIC).resolve() != (folder / CRITIC).resolve():
                shutil.copy(critic / CRITIC, folder)
            commands.append(model_card.typed(critic))
        rows.append(_row(found, guidance))
        commands.append(model_card.typed(place))
    n_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    about = record.read(evaluations[-1]) if evaluations else None
    card = CARD.format(
        name=folder.name, task=config["task"]["name"], bits=bits, megabytes=n_bytes / 1e6,
        parameters=sum(tensor.numel() for tensor in state["ema"]["model"].values()) / 1e6, rows="\n".join(rows),
        score=found.get("protocol", {}).get("score"), success=found.get("protocol", {}).get("success"),
        machine=(about or {}).get("machine", {}).get("cpu"), commands="\n".join(dict.fromkeys(commands)),
    )  # fmt: skip
    (folder / "README.md").write_text(card)


def _row(found: dict[str, Any], guidance: dict[str, Any]) -> str:
    chosen = f"best of {guidance['n']}, {guidance['critic']}" if "n" in guidance else "none"
    protocol = found["protocol"]
    seeds = f"{protocol['name']}, seeds {protocol['seeds'][0]}–{protocol['seeds'][1]}"
    texts = [text_of(estimate_of(found, "score")), text_of(estimate_of(found, "success"), True)]
    return f"| {seeds} | {chosen} | {' | '.join(texts)} | {found['inference_ms']:.0f} |"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), *map(Path, sys.argv[4:]))
