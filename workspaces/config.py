"""The type of a composed configuration, and where its files are."""

from pathlib import Path
from typing import Any

Config = dict[str, Any]
"""A resolved configuration: dicts, lists, strings, numbers, booleans, None."""

CONFIGS = Path(__file__).parent.parent / "configs"
