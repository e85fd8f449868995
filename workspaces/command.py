"""Command lines to print for a user to paste."""

import re
import shlex
from collections.abc import Iterable

from hydra.core.hydra_config import HydraConfig

PLAIN = re.compile(r"[\w./-]+", re.ASCII)
"""Values without special characters of a shell or of Hydra's grammar."""

NOT_TEXT = re.compile(r"null|true|false|nan|inf|[+-]?[\d._]+(e[+-]?\d+)?|[+-]?inf", re.IGNORECASE)
"""Plain values that Hydra would read as something other than text."""


def override(key: str, value: object) -> str:
    """`key=value` in Hydra's grammar. `value` is any text, or dicts and lists of texts; the dicts' keys are words."""
    return f"{key}={_value(value)}"


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    text = str(value)
    plain = isinstance(value, int) or (PLAIN.fullmatch(text) and not NOT_TEXT.fullmatch(text))
    return text if plain else quoted(text)


def quoted(text: str) -> str:
    """`text` as a quoted value of Hydra's grammar, which unescapes only what stands before a quotation mark."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # an interpolation, to OmegaConf
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + m[2].replace("'", "\\'"), text) + "'"


def run(*overrides: str) -> str:
    """The command with these overrides, quoted for a shell."""
    return " ".join(["python run.py", *map(_for_shell, overrides)])


def config_dirs() -> list[str]:
    """The folders of `--config-dir`."""
    if not HydraConfig.initialized():
        return []
    sources = HydraConfig.get().runtime.config_sources
    return [source.path for source in sources if source.provider == "command-line"]


def again(*overrides: str) -> str:
    """The command with these overrides that finds the configurations which this process found."""
    return run(*(word for folder in config_dirs() for word in ("--config-dir", folder)), *overrides)


def _for_shell(word: str) -> str:
    """Quotes a word for a shell, in double quotation marks if it contains single ones, which is easier to read."""
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word)


def trust(packages: Iterable[str]) -> list[str]:
    """The override, if any, that lets a command import `packages`."""
    named = sorted(set(packages))
    return [f"trust=[{','.join(named)}]"] if named else []
