"""A person's window, on a real (virtual) display with real pointer and key events."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pygame
import pytest

from dp.tasks.pusht.demonstration import Recorder
from dp.tasks.pusht.env import PushTEnv
from dp.tasks.pusht.mouse import Mouse, _Window
from dp.tasks.pusht.state import initial_state
from dp.tasks.pusht.store import ReplayBuffer
from tests.cli import RUN

SIZE = 256


@pytest.fixture(scope="module")
def display():
    missing = [tool for tool in ("Xvfb", "xdotool") if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    read, write = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(write), "-screen", "0", "800x600x24"], pass_fds=[write])
    number = os.read(read, 10).decode().strip()
    yield {**os.environ, "DISPLAY": f":{number}", "SDL_VIDEODRIVER": "x11"}
    server.terminate()
    server.wait()


class Person:
    """Someone at the display, with a hand on the mouse and one on the keys."""

    def __init__(self, env):
        self.env = env
        for _ in range(600):  # torch and Hydra come first
            windows = self._tool("search", "--class", "run.py").split()
            if windows:
                break
            time.sleep(0.1)
        self.window = windows[-1]
        self._tool("windowfocus", self.window)

    def _tool(self, *arguments):
        return subprocess.run(["xdotool", *arguments], env=self.env, capture_output=True, text=True).stdout

    def point(self, x, y):
        """At a position of the environment."""
        self._tool("mousemove", "--window", self.window, str(round(x * SIZE / 512)), str(round(y * SIZE / 512)))
        time.sleep(0.2)

    def press(self, key):
        self._tool("key", key)
        time.sleep(0.5)


@pytest.fixture
def person(display, tmp_path):
    """At the window of `workspace=collect collector=mouse`."""
    command = [sys.executable, str(RUN), "workspace=collect", "collector=mouse", f"collector.size={SIZE}",
               f"workspace.path={tmp_path / 'mine.zarr'}"]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, env=display, stderr=subprocess.PIPE, text=True)
    person = Person(display)
    person.process = process
    yield person
    process.kill()
    process.wait()


def drag(person, seed, n=8):
    """Takes the agent and moves it to the right."""
    x, y = initial_state(seed)[:2]
    for i in range(n):
        person.point(x + 8 * i, y)


def test_a_person_drives_keeps_redoes_skips_and_ends(person, tmp_path):
    person.point(500, 500)
    person.press("Return")  # nothing has been done yet: there is nothing to keep
    drag(person, 1000)
    person.press("r")  # forgets it all
    person.point(500, 500)
    drag(person, 1000)
    person.press("Return")
    person.press("s")  # leaves out 1001
    drag(person, 1002)
    person.press("Return")
    drag(person, 1003)
    person.press("Escape")  # in the middle of an episode
    _, said = person.process.communicate(timeout=60)
    assert person.process.returncode == 0, said
    assert "2 episodes kept" in said

    buffer = ReplayBuffer.load(tmp_path / "mine.zarr", ["state", "action"])
    assert buffer.seeds.tolist() == [1000, 1002]
    state, action = (buffer.arrays[name][: buffer.episode_ends[0]] for name in ("state", "action"))
    assert np.array_equal(state[0, :2], initial_state(1000)[:2].astype(np.float32))
    assert (np.diff(action[:, 0]) >= 0).all()  # what was done before R is not in it
    assert action[-1, 0] - action[0, 0] == pytest.approx(56, abs=6)
    recorder = Recorder(1000)
    for one in action:
        recorder.step(one)
    assert np.array_equal(recorder.demonstration().state, state)


def test_without_a_display_it_says_so(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    monkeypatch.setenv("DISPLAY", ":4242")
    pygame.display.quit()  # another test of this process may have left one open
    with pytest.raises(ValueError, match="collector=mouse needs a display"):
        Mouse()(1000)


@pytest.mark.parametrize(("screen", "side"), [((1366, 768), 612), ((1024, 600), 444), ((1920, 1080), 768)])
def test_the_line_with_the_keys_is_on_every_screen(monkeypatch, screen, side):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame.display.quit()
    pygame.display.init()
    monkeypatch.setattr(pygame.display, "get_desktop_sizes", lambda: [screen])
    window = _Window(768)
    env = PushTEnv([])
    env.reset(1000)
    window.show(env, "3 kept   seed 1000")
    width, height = window._surface.get_size()
    assert (width, height) == (side, side + 56)
    keys = pygame.surfarray.array3d(window._surface)[:, side + 28 :]
    assert (keys.min(2) < 128).any(0).sum() >= 8  # rows with ink
    assert (keys[-10:] == 255).all()  # the text ends within the window
    window.close()
