"""The schedulers of diffusers: one sampling loop for all of them, and a trial that finds out which of them work."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dp.types import Denoiser, Generator, Scheduler

Level = Tensor | float

TARGETS: dict[str, Callable[[Tensor, Tensor, Level, Level], Tensor]] = {
    "epsilon": lambda action, noise, signal, sigma: noise,
    "sample": lambda action, noise, signal, sigma: action,
    "v_prediction": lambda action, noise, signal, sigma: signal * noise - sigma * action,
}
"""Prediction target of a denoiser by `prediction_type`, where x = signal * action + sigma * noise.

"v_prediction": Salimans and Ho 2022, appendix D.
"""

ACTIONS: dict[str, Callable[[Tensor, Tensor, Level, Level], Tensor]] = {
    "epsilon": lambda x, output, signal, sigma: (x - sigma * output) / signal,
    "sample": lambda x, output, signal, sigma: output,
    "v_prediction": lambda x, output, signal, sigma: signal * x - sigma * output,
}
"""The action that a denoiser finds in x by what it predicts."""


def sample(
    scheduler: Scheduler,
    setting: int,
    denoiser: Denoiser,
    noise: Float[Tensor, "B H Da"],
    cond: Float[Tensor, "B To Do"],
    generator: Generator,
) -> Float[Tensor, "B H Da"]:
    """From noise to actions, with `set_timesteps(setting)`. The host never waits for the device."""
    scheduler.set_timesteps(setting)  # on the CPU: Python numbers below, not tensors of the device
    options = {"generator": generator} if _takes_generator(type(scheduler)) else {}
    x = noise * _first_scale(scheduler)
    for k in scheduler.timesteps.tolist():
        t = torch.full((len(x), 1), k, device=x.device)
        prediction = denoiser(_scaled(scheduler, x, k), t, cond)
        x = scheduler.step(prediction, k, x, **options).prev_sample.to(noise.dtype)  # CogVideoX: in double
    return x


@functools.cache
def _takes_generator(kind: type) -> bool:
    return "generator" in inspect.signature(kind.step).parameters  # type: ignore[attr-defined]


def _first_scale(scheduler: Scheduler) -> float:
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def _scaled(scheduler: Scheduler, x: Float[Tensor, "B H Da"], k: int | float) -> Float[Tensor, "B H Da"]:
    """`x` as the denoiser was trained to see it: some schedulers (Euler, LMS) keep it at another scale."""
    scale = getattr(scheduler, "scale_model_input", None)
    return x if scale is None else scale(x, k)


class NoSetting(ValueError):
    """A scheduler cannot sample with this number of evaluations."""


def setting_for(scheduler: Scheduler, evaluations: int) -> int:
    """The largest argument of `set_timesteps` that costs at most `evaluations` of the denoiser.

    Heun, KDPM2 and PNDM evaluate it more often than `set_timesteps` says. Raises NoSetting if nothing fits.
    """
    name, least = type(scheduler).__name__, 0
    for setting in range(evaluations, 0, -1):
        try:
            scheduler.set_timesteps(setting)
        except Exception as error:
            if least:
                break
            raise NoSetting(f"{name} cannot make that many: {error}".splitlines()[0]) from error
        if len(scheduler.timesteps) <= evaluations:
            return setting
        least = len(scheduler.timesteps)
    raise NoSetting(f"{name} needs at least {least}")


@dataclass(frozen=True)
class Gaussian:
    """Data whose best denoiser is known: independent numbers N(mean, std^2)."""

    mean: float
    std: float


class ExactDenoiser:
    """The denoiser that training on `data` converges to, at any time, also between two diffusion steps."""

    def __init__(self, data: Gaussian, alphas_cumprod: Float[Tensor, " T"], prediction_type: str) -> None:
        self.data, self._abar, self.prediction_type = data, alphas_cumprod.tolist(), prediction_type

    def __call__(
        self, x: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B 1"], cond: Float[Tensor, "B To Do"]
    ) -> Float[Tensor, "B H Da"]:
        signal, sigma, variance = self._levels(float(t[0, 0]))
        # The mean action and the mean noise, given x: both are linear in how far x is from its own mean.
        surprise = x - signal * self.data.mean
        action = self.data.mean + surprise * (signal * self.data.std**2 / variance)
        return TARGETS[self.prediction_type](action, surprise * (sigma / variance), signal, sigma)

    def noisy(self, z: Float[Tensor, "B 1 1"], t: int | float) -> Float[Tensor, "B 1 1"]:
        """Standard normal numbers -> the noisy data at time `t`."""
        signal, _, variance = self._levels(t)
        return signal * self.data.mean + variance**0.5 * z

    def _levels(self, t: int | float) -> tuple[float, float, float]:
        """sqrt(abar), sqrt(1 - abar) and the variance of x at time `t`."""
        before = int(t)
        after = min(before + 1, len(self._abar) - 1)
        abar = self._abar[before] + (t - before) * (self._abar[after] - self._abar[before])
        return abar**0.5, (1 - abar) ** 0.5, abar * self.data.std**2 + 1 - abar


POINT, SPREAD = Gaussian(0.2, 1e-3), Gaussian(0.2, 0.3)
"""Data of the trial. Any number of steps finds a point; only many steps find a spread."""

MIN_SCHEDULE = 50
"""Diffusion steps that a noise schedule needs for the spread to be asked of it."""


def fault_of(scheduler: Scheduler, setting: int, prediction_type: str) -> str | None:
    """Describes how samples of known data differ from the data; None if they agree. The denoiser is exact.

    Finds schedulers that cannot be stepped, that step with another noise schedule than their `alphas_cumprod`, and that
    need a denoiser trained otherwise (consistency models). It takes milliseconds and no global random number.
    """
    try:
        wrong = _fault_at_point(scheduler, setting, prediction_type)
        return wrong or _fault_at_spread(scheduler, prediction_type)
    except Exception as error:  # the scheduler's own
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _fault_at_point(scheduler: Scheduler, setting: int, prediction_type: str) -> str | None:
    last_noise = float((1 - scheduler.alphas_cumprod[0]) ** 0.5)  # type: ignore[attr-defined]  # that some leave
    mean, std = _samples_of(POINT, scheduler, setting, prediction_type)
    good = abs(mean - POINT.mean) < 0.05 and std < 0.05 + 1.2 * last_noise
    return None if good else f"it samples {mean:.2f} ± {std:.2f} where all actions are {POINT.mean}"


def _fault_at_spread(scheduler: Scheduler, prediction_type: str) -> str | None:
    if len(scheduler.alphas_cumprod) < MIN_SCHEDULE:  # type: ignore[attr-defined]
        return None
    for evaluations in (20, MIN_SCHEDULE):  # most need no more than twenty
        try:
            setting = setting_for(scheduler, evaluations)
        except NoSetting:
            continue
        mean, std = _samples_of(SPREAD, scheduler, setting, prediction_type)
        if abs(mean - SPREAD.mean) < 0.1 and 0.75 < std / SPREAD.std < 1.25:
            return None
    return f"it samples {mean:.2f} ± {std:.2f} where actions are {SPREAD.mean} ± {SPREAD.std}"


@torch.no_grad()
def _samples_of(data: Gaussian, scheduler: Scheduler, setting: int, prediction_type: str) -> tuple[float, float]:
    """Mean and standard deviation of samples that begin with `data` at the noise of the first step."""
    exact = ExactDenoiser(data, scheduler.alphas_cumprod, prediction_type)  # type: ignore[attr-defined]
    scheduler.set_timesteps(setting)
    first = scheduler.timesteps.tolist()[0]
    # Start from 256 quantiles of the noisy data, in the units in which `sample` takes noise.
    start = exact.noisy(torch.special.ndtri((torch.arange(256) + 0.5) / 256)[:, None, None], first)
    unit = _scaled(scheduler, torch.ones(1, 1, 1), first) * _first_scale(scheduler)
    with torch.random.fork_rng(devices=[]):  # some schedulers draw noise that no generator can be given for
        generator = torch.Generator().manual_seed(0)
        x = sample(scheduler, setting, exact, start / unit, torch.zeros(256, 1, 1), generator)
    return float(x.mean()), float(x.std())


def usable_schedulers(prediction_type: str) -> list[str]:
    """Names of the schedulers of diffusers that can be trained and stepped, found by trying them all, in seconds."""
    return [name for name in dir(diffusers) if name.endswith("Scheduler") and _is_usable(name, prediction_type)]


def _is_usable(name: str, prediction_type: str) -> bool:
    try:
        scheduler = getattr(diffusers, name)(num_train_timesteps=100, prediction_type=prediction_type)
        setting = setting_for(scheduler, 20)
        return fault_of(scheduler, setting, prediction_type) is None
    except Exception:  # needs other arguments, a package that is not installed, or another kind of denoiser
        return False
