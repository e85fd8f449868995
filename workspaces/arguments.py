"""Compares values with the annotations of the arguments that they are meant for.

Configurations hold plain values, so only plain types are compared: numbers, texts, booleans, null, choices (`Literal`),
lists and dictionaries, with limits from `annotated_types` (`Annotated[int, Ge(1)]`). Any other type accepts everything.
"""

import difflib
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen, MultipleOf

MISSING = "???"
"""Hydra's mark for a missing value. The code that needs the value complains."""

EXAMPLES = {
    "task.shape_meta": "'task.shape_meta={obs: {agent_pos: {type: low_dim, shape: [2]}}, action: {shape: [2]}}', for "
    "example (workspace=inspect dataset.path=PATH prints the one of your data)",
}
"""What to type for a value of a form that nobody guesses."""

WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}
PLURALS = {"a whole number": "whole numbers", "a number": "numbers", "a text": "texts"}


def check_value(key: str, value: object, annotation: Any) -> None:
    """Raises ValueError, naming `key`, unless `value` is what `annotation` declares."""
    if typing.is_typeddict(annotation):
        _check_entries(key, value, annotation)
    elif not fits(value, annotation):
        raise ValueError(f"{key}={shown(value)}, expected {words(annotation, value)}")


def _check_entries(key: str, value: object, annotation: Any) -> None:
    declared = typing.get_type_hints(annotation, include_extras=True)
    if not isinstance(value, dict):
        raise ValueError(f"{key}={shown(value)}, expected {{{', '.join(f'{name}: ...' for name in declared)}}}")
    for name, inner in value.items():
        if name not in declared:
            raise ValueError(f"unknown key {key}.{name}. {suggestion(str(name), declared)}")
        check_value(f"{key}.{name}", inner, declared[name])
    _check_complete(key, annotation.__required_keys__ - value.keys())


def check_arguments(
    key: str, make: Callable[..., Any], settings: Mapping[str, Any], given: Collection[str] = ()
) -> None:
    """Compares `settings`, the values under `key`, with the signature of the class or function `make`.

    Args:
        given: names of arguments that other code supplies.

    Raises:
        ValueError: for an argument that `make` does not have, a value that does not fit, or one that is missing.
    """
    parameters = _parameters(make)
    settings = {name: value for name, value in settings.items() if not str(name).startswith("_")}
    takes_more = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    choices = [name for name, p in parameters.items() if name in settings or p.default is not p.empty]
    for name, value in settings.items():
        if name in parameters:
            default = parameters[name].default
            if value != MISSING and not (type(value) is type(default) and value == default):
                check_value(f"{key}.{name}", value, parameters[name].annotation)
        elif not takes_more:
            raise ValueError(
                f"unknown key {key}.{name}: {make.__name__} has no such argument. {suggestion(name, choices)}"
            )
    needed = {
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    _check_complete(key, needed - {name for name, value in settings.items() if value != MISSING} - set(given))


def _check_complete(key: str, missing: Collection[str]) -> None:
    for name in sorted(missing):
        example = EXAMPLES.get(f"{key}.{name}", f"{key}.{name}=VALUE")
        raise ValueError(f"{key}.{name} is missing, expected a value: give {example}")


def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(make, eval_str=True).parameters
    except NameError:  # of a type that is imported for type checkers only: nothing is declared that could be compared
        return inspect.signature(make).parameters


def fits(value: object, annotation: Any) -> bool:
    """Whether a plain value is what `annotation` declares. Numbers must be finite, unless a limit is infinite."""
    limits = []
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        limits = _limits(metadata)
    if value == math.inf and Le(math.inf) in limits:
        return annotation is float
    return _has_type(value, annotation) and all(_within(value, limit) for limit in limits)


def _has_type(value: object, annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in _alternatives(annotation))
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(annotation))
    if annotation in (None, type(None)):
        return value is None
    if annotation is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    if annotation in (int, bool, str):
        return type(value) is annotation
    if _is(origin, Mapping):
        return isinstance(value, Mapping) and _all_fit(value.values(), get_args(annotation)[1:])
    if _is(origin, tuple):
        return isinstance(value, list | tuple) and _entries_fit(value, get_args(annotation))
    if _is(origin, Sequence):
        return isinstance(value, list | tuple) and _all_fit(value, get_args(annotation))
    return True


def _is(origin: Any, kind: type) -> bool:
    return inspect.isclass(origin) and issubclass(origin, kind) and origin not in (str, bytes)


def _all_fit(values: Iterable[object], annotation: tuple[Any, ...]) -> bool:
    return not annotation or all(fits(value, annotation[0]) for value in values)


def _entries_fit(values: Sequence[object], annotations: tuple[Any, ...]) -> bool:
    if not annotations or annotations[-1] is Ellipsis:
        return _all_fit(values, annotations[:1])
    return len(values) == len(annotations) and all(map(fits, values, annotations))


def _alternatives(annotation: Any) -> list[Any]:
    """int | Literal["auto"] | Tensor -> [int, Literal["auto"]].

    Types that no plain value has are left out if the others say what may be written.
    """
    if get_origin(annotation) not in (typing.Union, types.UnionType):
        return [annotation]
    parts = [inner for part in get_args(annotation) for inner in _alternatives(part)]
    plain = [part for part in parts if _is_plain(part)]
    return plain if any(part is not type(None) for part in plain) else parts


def _is_plain(annotation: Any) -> bool:
    origin = get_origin(annotation) or annotation
    kinds = (int, float, bool, str, type(None), Literal, Annotated, Any, object)
    return origin in kinds or _is(origin, Mapping) or _is(origin, Sequence)


def _limits(metadata: Iterable[object]) -> list[Any]:
    grouped = [list(one) if isinstance(one, GroupedMetadata) else [one] for one in metadata]
    return [
        limit
        for group in grouped
        for limit in group
        if isinstance(limit, Ge | Gt | Le | Lt | MinLen | MaxLen | MultipleOf)
    ]


def _within(value: Any, limit: Any) -> bool:
    match limit:
        case Ge(ge):
            return value >= ge
        case Gt(gt):
            return value > gt
        case Le(le):
            return value <= le
        case Lt(lt):
            return value < lt
        case MultipleOf(factor):
            return value % factor == 0
        case MinLen(least):
            return len(value) >= least
        case MaxLen(most):
            return len(value) <= most
    raise AssertionError


def words(annotation: Any, value: object = None) -> str:
    """Words for what `annotation` declares, to follow "expected". Far limits are named only if `value` exceeds them."""
    limits: list[Any] = []
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        limits = _limits(metadata)
    parts = [_name(part, value) if part is annotation else words(part, value) for part in _alternatives(annotation)]
    bounds = [_bound(limit) for limit in limits if not _is_far(limit, value)]
    return " ".join([listed(list(dict.fromkeys(parts))), *filter(None, [" and ".join(bounds)])])


def _is_far(limit: Any, value: object) -> bool:
    inner = value if isinstance(value, list) else [value]
    numbers = [number for number in inner if type(number) in (int, float)]
    match limit:
        case Le():
            most: Any = limit.le
            return most > 1 and not any(number > most for number in numbers)
        case MaxLen(most):
            return len(inner) <= most
    return False


def _name(annotation: Any, value: object) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return listed([shown(choice) for choice in inner])
    kind = origin or annotation
    if _is(kind, tuple) and inner and inner[-1] is not Ellipsis:
        return f"[{', '.join(words(part, value) for part in inner)}]"
    if _is(kind, Sequence):
        return f"a list of {_plural(words(inner[0], value))}" if inner else "a list"
    if _is(kind, Mapping):
        return "keys with values, {key: value}"
    return WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _plural(text: str) -> str:
    for one, many in PLURALS.items():
        text = text.replace(one, many)
    return text


def _bound(limit: Any) -> str:
    match limit:
        case Ge(ge):
            return f"of at least {ge}"
        case Gt(gt):
            return f"above {gt}"
        case Le(le):
            return f"at most {le}"
        case Lt(lt):
            return f"below {lt}"
        case MultipleOf(factor):
            return f"divisible by {factor}"
        case MinLen(least):
            return "(one or more)" if least == 1 else f"({least} or more)"
        case MaxLen(most):
            return f"({most} at most)"
    raise AssertionError


def shown(value: object) -> str:
    """`value` as a user types it, cut if it is long."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if value == "":
        return "''"
    text = f"[{', '.join(map(shown, value[:40]))}]" if isinstance(value, list) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def listed(choices: Sequence[str]) -> str:
    """["a", "b", "c"] -> "a, b or c"."""
    return " or ".join(filter(None, [", ".join(choices[:-1]), choices[-1]])) if choices else ""


def suggestion(typed: str, known: Iterable[str]) -> str:
    """The names closest to what was typed, or all of them if there are few."""
    known = list(known)
    close = difflib.get_close_matches(typed, known, n=3, cutoff=0.6)
    if not close:  # what the user typed may be the last part of a longer name
        close = [name for name in known if name.rpartition(".")[2] == typed.rpartition(".")[2]][:3]
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Known: {', '.join(known)}" if len(known) < 16 else "python run.py --cfg job shows every key"
