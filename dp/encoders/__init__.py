"""Networks that turn To observations into features (B, To, Do). One file each."""

from dp.encoders.cnn import CNNEncoder
from dp.encoders.resnet import ResNetEncoder
from dp.encoders.state import StateEncoder
from dp.encoders.timm import TimmEncoder

__all__ = ["CNNEncoder", "ResNetEncoder", "StateEncoder", "TimmEncoder"]
