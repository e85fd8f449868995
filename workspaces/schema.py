"""Declared types and ranges of the content of files, checked when a file is read.

A schema is written as the data look: a dict of fields, a list with the schema of its items, a tuple of alternatives, a
`Range`, a pattern or a set of texts, a `Dense` tensor, or a plain type. The key `str` stands for every other field.
"""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import torch
from torch import Tensor

Schema = Any

MAX_TEXT = 10_000
"""Longest text, in characters."""


class Range(NamedTuple):
    """A number from `low` to `high`, both included; finite."""

    low: float
    high: float
    whole: bool = True


class Maybe(NamedTuple):
    """A field that may be missing. `null`: or may be None."""

    inner: Schema
    null: bool = True


class Dense(NamedTuple):
    """A tensor of this type and shape. None: any size."""

    dtype: torch.dtype
    shape: tuple[int | None, ...]


class Time(NamedTuple):
    """A time in ISO 8601, with its zone."""


COUNT = Range(0, 10**12)
NUMBER = Range(-1e100, 1e100, whole=False)
COMPONENT = re.compile(r"\w[\w.+-]{0,99}")
"""One component of a path that cannot lead out of its directory."""


def check(value: object, schema: Schema, where: str, at: str = "") -> None:
    """Raises ValueError, naming the first field `at` which `value` does not fit the schema. `where`: in which file."""
    if isinstance(schema, Maybe):
        if value is None and schema.null:
            return
        schema = schema.inner
    if isinstance(schema, tuple) and type(schema) is tuple:
        schema = next((one for one in schema if fits(value, one)), schema[0])
    if isinstance(schema, dict) and isinstance(value, dict):
        _check_fields(value, schema, where, at)
    elif isinstance(schema, list) and type(value) is list:
        for number, item in enumerate(value):
            check(item, schema[0], where, f"{at}[{number}]")
    elif not _accepts(value, schema):
        shown = repr(value) if isinstance(value, (str, int, float, type(None))) else type(value).__name__
        what = f"{at.lstrip('.')}={shown:.60}" if at else f"{shown:.60}"
        raise ValueError(f"{where} has {what}, expected {_words(schema)}")


def fits(value: object, schema: Schema) -> bool:
    """Whether `check` accepts `value`."""
    try:
        check(value, schema, "it")
    except ValueError:
        return False
    return True


def _check_fields(value: Mapping[Any, object], schema: dict[Any, Schema], where: str, at: str) -> None:
    for name, inner in schema.items():
        if name is not str and name not in value and not isinstance(inner, Maybe):
            raise ValueError(f"{where} lacks {f'{at}.{name}'.lstrip('.')}")
    for name, item in value.items():
        if type(name) is not str or len(name) > MAX_TEXT:
            raise ValueError(f"{where} has the key {name!r:.60}{f' in {at}' if at else ''}, expected a text")
        if name in schema or str in schema:
            check(item, schema.get(name, schema.get(str)), where, f"{at}.{name:.60}")


def _accepts(value: object, schema: Schema) -> bool:
    if isinstance(schema, Range):
        number = type(value) is int or (type(value) is float and not schema.whole and math.isfinite(value))
        return number and schema.low <= value <= schema.high  # type: ignore[operator]
    if isinstance(schema, Dense):
        sizes = zip(value.shape, schema.shape, strict=False) if isinstance(value, Tensor) else ()
        return (
            isinstance(value, Tensor)
            and (value.dtype, value.ndim) == (schema.dtype, len(schema.shape))
            and all(expected in (None, size) for size, expected in sizes)
        )
    if isinstance(schema, Time):
        return type(value) is str and _is_time(value)
    if isinstance(schema, re.Pattern):
        return type(value) is str and len(value) <= MAX_TEXT and bool(schema.fullmatch(value))
    if isinstance(schema, frozenset):
        return type(value) is str and value in schema
    if isinstance(schema, (dict, list)):
        return False
    if schema is dict:
        return isinstance(value, dict)  # state dicts are ordered
    return type(value) is schema and not (type(value) is str and len(value) > MAX_TEXT)


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _words(schema: Schema) -> str:
    """The schema in words, for a message."""
    if isinstance(schema, Range):
        return f"a {'whole ' if schema.whole else ''}number from {schema.low:g} to {schema.high:g}"
    if isinstance(schema, Dense):
        sizes = ", ".join("any" if size is None else str(size) for size in schema.shape)
        return f"a tensor {str(schema.dtype).removeprefix('torch.')} ({sizes})"
    if isinstance(schema, Time):
        return "a time with its zone"
    if schema is COMPONENT:
        return "a name of letters, digits and _ . + - (a part of a path)"
    if isinstance(schema, re.Pattern):
        return f"a text like {schema.pattern}"
    if isinstance(schema, frozenset):
        return f"one of {', '.join(sorted(schema))}"
    names = {str: "a text", bool: "true or false", int: "a whole number", Tensor: "a tensor"}
    kind = dict if isinstance(schema, dict) else list if isinstance(schema, list) else schema
    return names.get(kind, "fields" if kind is dict else "a list" if kind is list else str(kind))
