"""Checks data, versions, seeds, networks and the alignment of To, H and Ta. Says what is wrong and how to mend it."""

import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from dp.data import summary
from dp.data.demonstrations import Demonstrations
from dp.data.formats import open_store
from dp.data.formats.store import Store
from dp.data.opening import check_paths, open_lerobot, open_robomimic, open_zarr
from dp.data.reading import Mismatch
from dp.modalities import parse_shape_meta
from workspaces import build, checkpoint, command, record
from workspaces.arguments import MISSING
from workspaces.base import Config, Workspace

OPEN: Mapping[str, Callable[..., Demonstrations]] = {
    "zarr": open_zarr,
    "lerobot": open_lerobot,
    "robomimic": open_robomimic,
}
"""What reads a format, by its choice of `dataset=`."""


class InspectWorkspace(Workspace):
    """Prints its findings and fails if something is wrong. It writes only pictures, to the directory `media`."""

    def __init__(self, config: Config, media: str | None) -> None:
        super().__init__(config)
        self.media = media
        self.wrong: list[str] = []
        self.closing = "nothing is wrong"

    def run(self) -> None:
        """Raises ValueError, after everything has been printed, if something is wrong."""
        self._section("versions", self._versions)
        self._section("timing", self._timing)
        self._section("data", self._data)
        self._section("networks", self._networks)
        if self.wrong:
            raise ValueError("\n       ".join(self.wrong))
        print(f"\n{self.closing}")

    def _section(self, title: str, lines: Callable[[], Iterator[str]]) -> None:
        print(f"\n{title}")
        try:
            for line in lines():
                print(f"  {line}")
        except ValueError as error:
            self.wrong.append(str(error))
            print(f"  WRONG: {error}")

    def _versions(self) -> Iterator[str]:
        yield f"python {sys.version.split()[0]}"
        for name, version in {**checkpoint.versions(), "wandb": importlib.metadata.version("wandb")}.items():
            yield f"{name} {version}"
        cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        yield f"device={self.config['device']} -> {self.device}; CUDA: {cuda}; torch threads: {torch.get_num_threads()}"

    def _timing(self) -> Iterator[str]:
        h, to, ta = (self.config[key] for key in ("horizon", "n_obs_steps", "n_action_steps"))
        yield f"To={to} observed, H={h} predicted, Ta={ta} executed; now is index {to - 1}"
        yield "index     " + " ".join(f"{i:2d}" for i in range(h))
        yield "observed  " + " ".join(" o" if i < to else " ." for i in range(h))
        yield "executed  " + " ".join(" x" if to - 1 <= i < to - 1 + ta else " ." for i in range(h))
        control_hz = build.task(self.config).control_hz
        after = f"{ta / control_hz:g} s" if control_hz else f"{ta} steps"
        yield f"{h - (to - 1 + ta)} predicted steps are never executed; the policy looks again every {after}"

    def _networks(self) -> Iterator[str]:
        """Raises ValueError if networks that the user typed cannot take the observations, for example a crop that is
        too large. Whoever looks at data may leave networks open."""
        try:
            shapes = build.network_shapes(self.config) if self.config["task"]["shape_meta"] != MISSING else {}
        except ValueError as error:
            if _typed("encoder", "denoiser", "experiment"):
                raise
            yield f"the default networks do not take these observations: {error}"
            return
        for part in ("encoder", "denoiser") if shapes else ():
            n = sum(tensor.numel() for name, tensor in shapes.items() if name.startswith(part))
            yield f"{part}: {n / 1e6:.1f} M parameters"

    def _data(self) -> Iterator[str]:
        try:
            data = build.demonstrations(self.config)
        except ValueError as error:
            yield from self._foreign(error)
            return
        if doubts := len(list(data.doubts())):
            warnings = "WARNING above says" if doubts == 1 else f"{doubts} WARNINGS above say"
            self.closing = f"nothing is wrong but what the {warnings}"
        yield from self._windows(data)
        yield from data.describe()
        if self.media is not None:
            from workspaces.report.figures import style  # here, because it loads pandas and matplotlib

            with style():
                yield from data.save_pictures(Path(self.media))

    def _windows(self, data: Demonstrations) -> Iterator[str]:
        train, val = build.windows(self.config, data)
        yield f"train: {len(data.train_episodes)} episodes, {len(train)} windows"
        yield f"validation: {len(data.split.val)} episodes, {len(val)} windows"
        yield f"validation episodes: {data.split.val.tolist()}"

    def _foreign(self, error: ValueError) -> Iterator[str]:
        """Describes stores that this task cannot read, and how to train on them.

        Raises `error` if it concerns something else, or if the user chose the task.
        """
        undeclared = self.config["task"]["shape_meta"] == MISSING
        if self.config["dataset"].get("path") is None or not (isinstance(error, Mismatch) or undeclared):
            raise error
        for path in check_paths(self.config["dataset"]["path"]):
            store = open_store(path)
            yield from summary.describe(store)
            yield f"To train on these data: {_training_on(store)}"
        if _typed("task", "experiment"):
            raise error
        for path in check_paths(self.config["dataset"]["path"]):
            yield from self._trainable(open_store(path))
        task = f"task={self.config['task']['name']}"
        yield f"{task} does not read them: {error}"
        self.closing = (
            f"{task}, the default, does not read these data. The line above trains on them, and inspect checks it, too"
        )

    def _trainable(self, store: Store) -> Iterator[str]:
        """Reads the numbers as the line to paste would. Raises the ValueError that training on them would."""
        shape_meta = summary.guess(store)
        if shape_meta["action"] != "???":
            obs, action = parse_shape_meta(shape_meta)
            numbers = {name: spec for name, spec in obs.items() if spec.type != "rgb"}  # images would take minutes
            yield from self._windows(OPEN[store.choice](numbers, action, str(store.path)))


def _typed(*groups: str) -> bool:
    """Whether the user typed anything of these groups."""
    return any(text.lstrip("+~").startswith(groups) for text in record.overrides())


def _training_on(store: Store) -> str:
    """The command."""
    shape_meta = summary.guess(store)
    images = any(entry["type"] == "rgb" for entry in shape_meta["obs"].values())
    return command.run(
        "task=own",
        f"dataset={store.choice}",
        "encoder.crop=0.9" if images else "encoder=state",  # a fraction fits cameras of any size
        command.override("task.shape_meta", shape_meta),
        command.override("dataset.path", str(store.path)),
    )
