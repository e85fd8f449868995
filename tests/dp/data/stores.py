"""Small stores as people write them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr


def write(path: Path, arrays: Mapping[str, np.ndarray], zarr_format: int = 2, **options: Any) -> Path:
    """name -> values, chunks of 7 rows unless `chunks` says otherwise. "separator": of the names of v2's chunks."""
    chunks, separator = options.pop("chunks", {}), options.pop("separator", ".")
    group = zarr.open_group(str(path), mode=options.pop("mode", "w"), zarr_format=zarr_format)
    for name, values in arrays.items():
        layout = dict(options)
        if zarr_format == 2:
            layout["chunk_key_encoding"] = {"name": "v2", "separator": separator}
        shape = chunks.get(name, (min(7, len(values)), *values.shape[1:]))
        array = group.create_array(name, shape=values.shape, chunks=shape, dtype=values.dtype, **layout)
        array[...] = values
    return path


def robot(seed: int = 0, n_episodes: int = 4, length: int = 25) -> dict[str, np.ndarray]:
    """Two cameras of different sizes, one of them channels first, seven actions in float64."""
    rng = np.random.default_rng(seed)
    n = n_episodes * length
    return {
        "data/front": rng.integers(0, 256, (n, 12, 16, 3), np.uint8),
        "data/wrist": rng.random((n, 3, 10, 8)).astype(np.float32),
        "data/qpos": rng.normal(size=(n, 7)),
        "data/gripper": rng.integers(0, 100, n),
        "data/action": rng.normal(size=(n, 7)),
        "meta/ends": np.arange(length, n + 1, length),
    }


SHAPE_META = {
    "obs": {
        "front": {"type": "rgb", "shape": [3, 12, 16]},
        "wrist": {"type": "rgb", "shape": [3, 10, 8]},
        "joints": {"type": "low_dim", "shape": [7], "key": "qpos"},
        "gripper": {"type": "low_dim", "shape": [1]},
    },
    "action": {"shape": [7]},
}
