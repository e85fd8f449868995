"""Looks at the set-up: data, versions, the alignment of To, H and Ta, seeds. Says what is wrong and what mends it."""

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from dp.data import ReplayBuffer
from dp.data.replay_buffer import read_facts
from dp.tasks.pusht.env import PushTEnv
from dp.tasks.pusht.sources import OFFICIAL_SHA256
from workspaces import build, checkpoint
from workspaces.album import save_pictures
from workspaces.base import Config, Workspace
from workspaces.statistics import OFFICIAL, describe

TOLERANCE_PX = 1e-3


class InspectWorkspace(Workspace):
    """Prints what it finds and fails when something is wrong. Writes nothing but pictures, to the directory `media`."""

    def __init__(self, config: Config, media: str | None) -> None:
        super().__init__(config)
        self.media = media
        self.wrong: list[str] = []

    def run(self) -> None:
        """Raises ValueError, after everything has been printed, where something is wrong."""
        self._section("versions", self._versions)
        self._section("timing", self._timing)
        self._section("data", self._data)
        if self.wrong:
            raise ValueError("\n       ".join(self.wrong))
        print("\nnothing is wrong")

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
        if importlib.metadata.version("pygame") != "2.5.2":
            raise ValueError("pygame draws other pixels than the data set has: pip install pygame==2.5.2")

    def _timing(self) -> Iterator[str]:
        h, to, ta = (self.config[key] for key in ("horizon", "n_obs_steps", "n_action_steps"))
        yield f"To={to} observed, H={h} predicted, Ta={ta} executed; now is index {to - 1}"
        yield "index     " + " ".join(f"{i:2d}" for i in range(h))
        yield "observed  " + " ".join(" o" if i < to else " ." for i in range(h))
        yield "executed  " + " ".join(" x" if to - 1 <= i < to - 1 + ta else " ." for i in range(h))
        yield f"{h - (to - 1 + ta)} predicted steps are never executed; a new look every {ta / 10:g} s"

    def _data(self) -> Iterator[str]:
        data = build.demonstrations(self.config)
        names = list(data.buffer.arrays)
        stores = {path: ReplayBuffer.load(path, [*names, "noise"]) for path in data.paths}
        for path, store in stores.items():
            yield from _contents(path, store, official=store.sha256(*names) in OFFICIAL_SHA256)
        steps = (self.config["horizon"], self.config["n_obs_steps"], self.config["n_action_steps"])
        for name, episodes in (("train", data.split.train), ("validation", data.split.val)):
            yield f"{name}: {len(episodes)} episodes, {len(data.windows(episodes, *steps))} windows"
        yield f"validation episodes: {data.split.val.tolist()}"
        for name, array in data.buffer.arrays.items():
            yield f"{name}: {array.shape} {array.dtype}, {array.min():.1f} to {array.max():.1f}"
        for path, store in stores.items():
            yield from _starts(path, store)
        if self.media is not None:
            recorded = [ReplayBuffer.load(path, ["state", "action", "noise"]) for path in data.paths]
            yield f"pictures: {save_pictures(ReplayBuffer.join(recorded), Path(self.media))}"


def _contents(path: Path, store: ReplayBuffer, official: bool) -> Iterator[str]:
    """What is in a store, beside the official one."""
    yield f"{path}: {store.n_episodes} episodes, {len(store)} frames"
    yield "the official demonstrations, bit for bit" if official else "not the official demonstrations"
    rows = [(name, value, OFFICIAL[name]) for name, value in describe(path).items()]
    yield from tabulate(rows, ["", "here", "official"], disable_numparse=True).splitlines()


def _starts(path: Path, store: ReplayBuffer) -> Iterator[str]:
    """Compares the first states of the demonstrations with the environment's, and replays one of them."""
    env, starts = PushTEnv(["agent_pos"]), store.episode_starts
    state, action, noise = (store.arrays[name] for name in ("state", "action", "noise"))
    agreeing = 0
    facts = read_facts(path)
    said = "their number as a seed"
    if "seed" in facts:
        said = f"the {'initial state' if 'initial_state' in facts else 'seed'} that is stored with them"
    for initial_state, start in zip(store.initial_states, starts, strict=True):
        env.reset_to(initial_state)
        agreeing += bool(np.abs(env.state - state[start]).max() < TOLERANCE_PX)
    yield f"{agreeing} of {len(starts)} demonstrations start from {said}"
    if agreeing < len(starts):
        yield "  rollout/train_score compares other initial states: env_runner.n_train_episodes=0 leaves it out"
    elif not store.from_seed.all():
        yield f"  {store.from_seed.sum()} of these are what their seeds give; rollout/train_score leaves the others out"
    env.reset_to_observed(state[0])
    drift = 0.0
    for t in range(int(store.episode_ends[0]) - 1):
        env.step(action[t] + noise[t])
        drift = max(drift, float(np.abs(env.state - state[t + 1]).max()))
    yield f"demonstration 0 replayed: the state drifts by at most {drift:.1e} px"
    if drift > 1:
        raise ValueError("the environment does not follow the data: pip install gym-pusht==0.1.8 'pymunk<7'")
