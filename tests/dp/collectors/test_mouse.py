"""A person's window, on a real (virtual) display with real pointer and key events."""

import os
import pickle
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from dp.collectors import replay
from dp.collectors.mouse import Mouse
from dp.tasks.pusht import initial_state

SIZE = 256

DRIVER = """
import pickle, sys
from dp.collectors import Finished
from dp.collectors.mouse import Mouse
mouse, kept = Mouse(size=int(sys.argv[1])), []
try:
    for seed in range(1000, 1010):
        print(seed, flush=True)
        kept.append(mouse(seed))
except Finished as end:
    print("finished:", end, flush=True)
pickle.dump(kept, open(sys.argv[2], "wb"))
"""


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
        for _ in range(150):
            windows = self._tool("search", "--class", "python|pytest|dp|driver").split()
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
        time.sleep(0.15)

    def press(self, key):
        self._tool("key", key)
        time.sleep(0.25)


@pytest.fixture
def collecting(display, tmp_path):
    """The collector in a process of its own: (person, what it printed so far, what it kept after Esc)."""
    script, kept, log = tmp_path / "driver.py", tmp_path / "kept.pkl", tmp_path / "log.txt"
    script.write_text(DRIVER)
    process = subprocess.Popen([sys.executable, str(script), str(SIZE), str(kept)], env=display, stdout=log.open("w"))

    def end():
        person.press("Escape")
        assert process.wait(30) == 0
        return pickle.loads(kept.read_bytes())

    person = Person(display)
    yield person, lambda: log.read_text().split(), end
    process.kill()
    process.wait()


def drag(person, seed, n=8):
    """Takes the agent and moves it to the right."""
    x, y = initial_state(seed)[:2]
    for i in range(n):
        person.point(x + 8 * i, y)


def test_a_person_drives_keeps_redoes_skips_and_ends(collecting):
    person, printed, end = collecting
    person.point(500, 500)
    person.press("Return")  # nothing has been done yet: there is nothing to keep
    assert printed() == ["1000"]
    drag(person, 1000)
    person.press("r")  # forgets it all
    assert printed() == ["1000"]
    person.point(500, 500)
    drag(person, 1000)
    person.press("Return")
    assert printed() == ["1000", "1001"]
    person.press("s")
    assert printed() == ["1000", "1001", "1002"]
    kept, skipped = end()
    assert " ".join(printed()).endswith("finished: 1 episodes kept")
    assert skipped is None
    assert np.array_equal(kept.state[0, :2], initial_state(1000)[:2].astype(np.float32))
    assert 8 <= len(kept) <= 60  # what was done before R is not in it
    assert (np.diff(kept.action[:, 0]) >= 0).all()
    assert kept.action[-1, 0] - kept.action[0, 0] == pytest.approx(56, abs=6)
    again = replay(kept)
    assert np.array_equal(again.state, kept.state)
    assert again.final_coverage == kept.final_coverage


def test_without_a_display_it_says_so(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    monkeypatch.setenv("DISPLAY", ":4242")
    with pytest.raises(ValueError, match="collector=mouse needs a display"):
        Mouse()(1000)
