"""Names of a LeRobot policy's weights -> ours. Shapes are the same."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from workspaces.importers.layout import module_name
from workspaces.importers.lerobot.settings import is_shared

UNET, IMAGES = "diffusion.unet.", "diffusion.rgb_encoder."

LAYERS = {"backbone": "0.", "pool.nets": "1.0.heatmaps.", "out": "1.1."}
"""Parts of an image network -> ours."""


def our_name(name: str, settings: Mapping[str, Any], cameras: Sequence[str]) -> str | None:
    """None for the coordinates of pixels, which follow from the size of the images.

    cameras: our observations, in the order of the policy's. Raises ValueError for a weight that such a policy does not
    have.
    """
    plain = name.replace("._orig_mod.", ".")  # torch.compile's
    if plain.startswith(UNET):
        return _in_unet(plain.removeprefix(UNET))
    numbered = r"(?P<number>\d+)\." if settings["use_separate_rgb_encoder_per_camera"] else ""
    found = re.fullmatch(rf"{re.escape(IMAGES)}{numbered}(?P<part>backbone|pool\.nets|pool|out)\.(?P<rest>.+)", plain)
    number = int(found["number"]) if found and numbered else 0
    if found is None or number >= len(cameras) or (found["part"] == "pool" and found["rest"] != "pos_grid"):
        raise ValueError(f"its weights have {name:.100}, which a diffusion policy with its config.json does not have")
    network = "shared" if is_shared(settings) else module_name(cameras[number])
    if found["part"] == "pool":
        return None
    return f"encoder.backbones.{network}.{LAYERS[found['part']]}{found['rest']}"


def _in_unet(name: str) -> str:
    name = re.sub(r"\.conv([12])\.block\.", lambda found: f".blocks.{int(found[1]) - 1}.block.", name)
    return "denoiser." + re.sub(r"(_modules\.\d+\.2)\.(weight|bias)$", r"\1.conv.\2", name)
