"""Observations for encoders, by their shapes."""

from dp.modalities import Spec


def specs(**shapes: tuple[int, ...]) -> dict[str, Spec]:
    """name=shape -> name: Spec; three dimensions are an image."""
    return {name: Spec("rgb" if len(shape) == 3 else "low_dim", shape, name) for name, shape in shapes.items()}
