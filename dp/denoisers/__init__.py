"""Networks that predict the noise (or the sample, or the velocity) of a noisy action sequence."""

from dp.denoisers.unet1d import UNet1d

__all__ = ["UNet1d"]
