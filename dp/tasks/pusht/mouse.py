"""A person as a demonstrator, as in the reference implementation's demo_pusht.py."""

from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from jaxtyping import Float

from dp.limits import Count
from dp.tasks.demonstration import Finished
from dp.tasks.pusht.demonstration import Demonstration, Recorder
from dp.tasks.pusht.env import PushTEnv

WORKSPACE = 512
"""Pixels of the environment's coordinates."""

GRIP = 30
"""Pixels from the agent's centre at which the pointer takes hold of it."""

TEXT_HEIGHT = 56
"""Pixels of the screen below the picture, for two lines."""

AROUND = 100
"""Pixels of a screen's height for the window's title and a task bar."""

HELP = "R: once more   S: skip   Enter: keep as it is   Esc: done"


class Mouse:
    """Lets a person move the agent in a window, at the environment's 10 Hz.

    The agent waits until the pointer takes hold of it, then follows; an episode ends `n_frames_past_success` steps
    after the task is solved. R begins it again and forgets what was done, S skips to the next seed, Enter keeps the
    episode although it is not solved, Esc or closing the window ends it all.

    Args:
        size: of the picture's side, pixels of the screen; smaller if the screen has no room for it and the keys.
        n_frames_past_success: control steps recorded after the task is solved.

    Raises ValueError, when the first episode begins, if there is no display.
    """

    in_this_process = True
    """There is one window and one person, so seeds run one at a time."""

    chooses = True
    """The person chooses: every kept episode is stored, solved or not."""

    def __init__(
        self, size: Annotated[int, Interval(ge=100, le=10_000)] = 768, n_frames_past_success: Count = 5
    ) -> None:
        self.size, self.n_frames_past_success = size, n_frames_past_success
        self._window: _Window | None = None
        self.n_stored = 0

    def __call__(self, seed: int) -> Demonstration | None:
        """Raises `Finished` when the person closes the window or presses Esc."""
        self._window = self._window or _Window(self.size)
        while True:
            demonstration, again = self._episode(self._window, seed)
            if not again:
                return demonstration

    def _episode(self, window: "_Window", seed: int) -> tuple[Demonstration | None, bool]:
        """The episode if it is kept, and whether to try it again."""
        recorder, held, past = Recorder(seed), False, 0
        while past <= self.n_frames_past_success:
            state = f"{self.n_stored} kept   seed {seed}   step {len(recorder)}   coverage {recorder.env.coverage:.2f}"
            keys = window.show(recorder.env, state if held else f"{state}   take the blue disc to begin")
            if "escape" in keys:
                window.close()
                raise Finished(f"{self.n_stored} episodes kept")
            if "r" in keys:
                return None, True
            if "s" in keys:
                return None, False
            if "return" in keys and len(recorder):
                break
            target = window.pointer()
            held = held or bool(np.hypot(*(target - recorder.env.state[:2])) < GRIP)
            if held:
                past = past + 1 if recorder.step(target) or past else 0
        return recorder.demonstration(), False


class _Window:
    def __init__(self, size: int) -> None:
        import pygame

        self._pygame = pygame
        try:
            pygame.display.init()
            width, height = pygame.display.get_desktop_sizes()[0]
            self._size = max(100, min(size, width, height - TEXT_HEIGHT - AROUND))
            self._surface = pygame.display.set_mode((self._size, self._size + TEXT_HEIGHT))
        except pygame.error as error:
            raise ValueError(f"collector=mouse needs a display ({error}): run it on a machine with a screen") from None
        pygame.font.init()
        pygame.display.set_caption("dp: demonstrate PushT")
        self._font, self._clock = pygame.font.Font(None, 24), pygame.time.Clock()

    def show(self, env: PushTEnv, state: str) -> set[str]:
        """Draws the environment at its next tick. Returns the names of the keys pressed since; escape for closing."""
        picture = self._pygame.surfarray.make_surface(env.render().swapaxes(0, 1))
        self._surface.fill("white")
        self._pygame.transform.smoothscale(
            picture, (self._size,) * 2, self._surface.subsurface(0, 0, *(self._size,) * 2)
        )
        for line, text in enumerate((state, HELP)):
            self._surface.blit(self._line(text), (10, self._size + 6 + 24 * line))
        self._pygame.display.flip()
        self._clock.tick(env.control_hz)
        events = self._pygame.event.get()
        keys = {self._pygame.key.name(event.key) for event in events if event.type == self._pygame.KEYDOWN}
        return keys | {"escape" for event in events if event.type == self._pygame.QUIT}

    def _line(self, text: str) -> Any:
        """The text as a picture, no wider than the window."""
        line, room = self._font.render(text, True, "black"), self._size - 20
        if line.get_width() <= room:
            return line
        return self._pygame.transform.smoothscale(line, (room, line.get_height() * room // line.get_width()))

    def pointer(self) -> Float[np.ndarray, " 2"]:
        """The pointer's position in the environment's pixels, inside its workspace."""
        return np.clip(np.array(self._pygame.mouse.get_pos(), float) * WORKSPACE / self._size, 0, WORKSPACE)

    def close(self) -> None:
        self._pygame.display.quit()
