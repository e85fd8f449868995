"""Command lines to print for a user to paste."""

import re
import shlex

PLAIN = re.compile(r"[\w./-]+", re.ASCII)
"""Values without special characters of a shell or of Hydra's grammar."""

NOT_TEXT = re.compile(r"null|true|false|nan|inf|[+-]?[\d._]+(e[+-]?\d+)?|[+-]?inf", re.IGNORECASE)
"""Plain values that Hydra would read as something other than text."""


def override(key: str, value: object) -> str:
    """`key=value` in Hydra's grammar, whatever the text `value` contains."""
    text = str(value)
    plain = PLAIN.fullmatch(text) and not NOT_TEXT.fullmatch(text)
    return f"{key}={text if plain else quoted(text)}"


def quoted(text: str) -> str:
    """`text` as a quoted value of Hydra's grammar, which unescapes only what stands before a quotation mark."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # an interpolation, to OmegaConf
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + m[2].replace("'", "\\'"), text) + "'"


def run(*overrides: str) -> str:
    """The command with these overrides, quoted for a shell."""
    return " ".join(["python run.py", *map(_for_shell, overrides)])


def _for_shell(word: str) -> str:
    """Quotes a word for a shell, in double quotation marks if it contains single ones, which is easier to read."""
    return f'"{word}"' if "'" in word and not re.search(r'["$`\\!]', word) else shlex.quote(word)
