"""Networks that predict the noise (or the sample, or the velocity) of a noisy action sequence."""

from dp.denoisers.dit import DiT
from dp.denoisers.mlp import MLP
from dp.denoisers.transformer import Transformer
from dp.denoisers.unet1d import UNet1d

__all__ = ["MLP", "DiT", "Transformer", "UNet1d"]
