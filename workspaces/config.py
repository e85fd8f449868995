"""The type of a composed configuration."""

from typing import Any

Config = dict[str, Any]
"""A resolved configuration: dicts, lists, strings, numbers, booleans, None."""
