"""Denoising diffusion (Ho et al. 2020), over the schedulers of diffusers."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from dp.distributed import draw
from dp.objectives.schedulers import ACTIONS, TARGETS, NoSetting, fault_of, sample, setting_for, usable_schedulers
from dp.types import Denoiser, Generator


class Diffusion(nn.Module):
    """Trains at random steps of the noise schedule that `scheduler` samples with: its `alphas_cumprod`.

    Args:
        scheduler: a `dp.types.Scheduler`. It samples, and says by `config.prediction_type` what the denoiser predicts.
        num_inference_steps: evaluations of the denoiser for one sample. Schedulers that need several for a step (Heun,
            KDPM2, PNDM) make as many steps as fit.

    Raises:
        ValueError: for a scheduler that cannot be trained or stepped, naming those of diffusers that can; for a number
            of steps that it cannot make; for an unknown `prediction_type`.
    """

    n_times = 1
    alphas_cumprod: Tensor

    def __init__(self, scheduler: Any, num_inference_steps: int) -> None:
        super().__init__()
        self.scheduler, self.num_inference_steps = scheduler, num_inference_steps
        self.prediction_type = getattr(getattr(scheduler, "config", None), "prediction_type", "epsilon")
        abar = getattr(scheduler, "alphas_cumprod", None)
        if not isinstance(abar, Tensor):
            raise self._refusal("it has no `alphas_cumprod`, the noise schedule for training")
        if self.prediction_type not in TARGETS:
            raise ValueError(f"prediction_type={self.prediction_type}, expected epsilon, sample or v_prediction")
        if not 1 <= num_inference_steps <= len(abar):
            raise ValueError(
                f"num_inference_steps={num_inference_steps}, expected 1 to {len(abar)}, the length of the schedule"
            )
        self.register_buffer("alphas_cumprod", abar.clone().float(), persistent=False)
        self._setting = num_inference_steps if abar.is_meta else self._tried_setting()

    def loss(
        self,
        denoiser: Denoiser,
        action: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, ""]:
        """Mean squared error at random diffusion steps (Chi et al. 2023, eq. 5)."""
        noise = draw(torch.randn, action.shape, generator=generator, device=action.device)
        k = draw(
            partial(torch.randint, len(self.alphas_cumprod)), (len(action),), generator=generator, device=action.device
        )
        signal, sigma = self.levels(k)
        prediction = denoiser(signal * action + sigma * noise, k[:, None], cond)
        return F.mse_loss(prediction.float(), TARGETS[self.prediction_type](action, noise, signal, sigma))

    def noisy(
        self, action: Float[Tensor, "B H Da"], noise: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B 1"]
    ) -> Float[Tensor, "B H Da"]:
        """The input of the denoiser at diffusion step `t` that belongs to `action` (Ho et al. 2020, eq. 4)."""
        signal, sigma = self.levels(t[:, 0].long())
        return signal * action + sigma * noise

    def prediction_for(
        self, x: Float[Tensor, "B H Da"], action: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B 1"]
    ) -> Float[Tensor, "B H Da"]:
        """The output of a denoiser that recognises `action` in `x` at diffusion step `t`."""
        signal, sigma = self.levels(t[:, 0].long())
        return TARGETS[self.prediction_type](action, (x - signal * action) / sigma, signal, sigma)

    def denoised(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "B H Da"],
        sigma: Float[Tensor, "B 1 1"],
        cond: Float[Tensor, "B To Do"],
    ) -> Float[Tensor, "B H Da"]:
        """The action that the denoiser finds in `x`, an action with noise of standard deviation `sigma`.

        The denoiser knows such noise from the nearest diffusion step, where everything is scaled to unit variance.
        """
        own = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()
        k = (own.log() - sigma[:, 0].log()).abs().argmin(1)
        signal, noise_level = self.levels(k)
        prediction = denoiser(signal * x, k[:, None], cond)
        return ACTIONS[self.prediction_type](signal * x, prediction, signal, noise_level)

    def levels(self, k: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B 1 1"], Float[Tensor, "B 1 1"]]:
        """Shares of action and noise at diffusion step `k`."""
        abar = self.alphas_cumprod[k][:, None, None]
        return abar**0.5, (1 - abar) ** 0.5

    def sample(
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: Generator,
    ) -> Float[Tensor, "B H Da"]:
        """From noise to actions (Chi et al. 2023, eq. 1-4)."""
        return sample(self.scheduler, self._setting, denoiser, noise, cond, generator)

    def _tried_setting(self) -> int:
        try:
            setting = setting_for(self.scheduler, self.num_inference_steps)
        except NoSetting as error:
            raise ValueError(f"num_inference_steps={self.num_inference_steps}: {error}") from error
        if fault := fault_of(self.scheduler, setting, self.prediction_type):
            raise self._refusal(fault)
        return setting

    def _refusal(self, fault: str) -> ValueError:
        name, usable = type(self.scheduler).__name__, usable_schedulers(self.prediction_type)
        if name in usable:
            return ValueError(
                f"num_inference_steps={self.num_inference_steps} does not work with this {name}: {fault}. Use fewer, "
                "or other settings of the scheduler"
            )
        return ValueError(
            f"scheduler={name} does not work with prediction_type={self.prediction_type}: {fault}. Expected one of: "
            + ", ".join(usable)
        )
