"""What a configuration is once Hydra has composed it."""

from typing import Any

Config = dict[str, Any]
"""A resolved configuration: dicts, lists, strings, numbers, booleans, None."""
