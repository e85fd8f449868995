"""Names of the weights of the paper's code -> ours. Shapes are the same, and the UNet's and transformer's names are."""

import re
from collections.abc import Mapping

from torch import Tensor

from workspaces.importers.features import Observations
from workspaces.importers.layout import module_name

DROPPED = re.compile(
    r"(.+\.)?_dummy_variable|mask_generator\..+|model\.(mask|memory_mask)|.+\.input_stats\.\w+"
    r"|obs_encoder\.obs_nets\.\w+\.(backbone|pool)\..+|obs_encoder\.obs_nets\.\w+\.nets\.1\.pos_[xy]"
)
"""Entries that follow from others: masks, the statistics behind a scale and an offset, robomimic's second names of an
image network's layers, the coordinates of pixels."""

CAMERA = re.compile(r"obs_encoder\.obs_nets\.(?P<camera>\w+)\.nets\.(?P<layer>0\.nets|1\.nets|1|3)\.(?P<rest>.+)")
"""A weight of robomimic's image network."""

LAYERS = {"0.nets": "0", "1.nets": "1.0.heatmaps", "3": "1.1"}
"""Layers of robomimic's image network -> ours."""

MAPS = "normalizer.params_dict."


def our_name(name: str, tensor: Tensor, found: Observations) -> str | None:
    """None for the normalisation, and for a temperature of 1.

    Raises ValueError for a weight that these policies do not have, and for another temperature of the spatial softmax.
    """
    if name.startswith("model."):
        return name.replace("model.", "denoiser.", 1)
    if name.startswith(MAPS):
        return None
    layer = CAMERA.fullmatch(name)
    if layer is None or layer["camera"] not in found:
        raise ValueError(f"its weights have {name:.100}, which its policy does not have")
    if layer["layer"] == "1":
        if layer["rest"] != "temperature" or tensor.numel() != 1 or float(tensor.flatten()[0]) != 1:
            raise ValueError(f"its weights have {name:.100}, expected only a temperature of 1 there")
        return None
    camera = module_name(found[layer["camera"]][0])
    return f"encoder.backbones.{camera}.{LAYERS[layer['layer']]}.{layer['rest']}"


def map_of(weights: Mapping[str, Tensor], feature: str, kind: str) -> Tensor:
    """scale or offset of the normalisation of a feature. Raises ValueError if it is missing."""
    name = f"{MAPS}{feature}.{kind}"
    if name not in weights:
        raise ValueError(f"its weights lack {name:.100}")
    return weights[name]


def n_keypoints(weights: Mapping[str, Tensor]) -> int:
    """Heat maps of the spatial softmax; 0 without images."""
    biases = [t for name, t in weights.items() if name.startswith("obs_enc") and name.endswith(".nets.1.nets.bias")]
    return biases[0].numel() if biases else 0
