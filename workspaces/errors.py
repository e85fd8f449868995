"""Errors as a user sees them: one or two lines for their mistakes, a traceback for ours."""

import difflib
import errno
import os
import re
import sys
import traceback
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dp import distributed
from workspaces.arguments import suggestion

OURS = [Path(__file__).parent, Path(__file__).parent.parent / "dp"]
HYDRA = Path(hydra.__file__).parent

LONG = r"(\S{100})\S{900,}"
"""A word that nobody reads to its end: what was typed, not a path."""


class Interrupted(Exception):
    """A signal asked the run to stop, and it has saved itself."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def full_tracebacks() -> None:
    """Makes Hydra raise instead of printing: `exit_with_message` does that better."""
    os.environ["DP_TRACEBACK"] = os.environ.get("DP_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"


def check_options() -> None:
    """Exits with two lines for an option that does not exist. Hydra's own account of its usage takes eight."""
    parser = get_args_parser()
    parser.usage = "python run.py [-m] KEY=VALUE ... (python run.py --help says more)"
    parser.parse_args()


def exit_with_message(error: Exception) -> int:
    """Prints what went wrong and returns the exit code."""
    message = _explain(cause_of(error))
    if isinstance(error, Interrupted) and not distributed.writes():
        return error.exit_code  # rank 0 says it
    if message is None or os.environ.get("DP_TRACEBACK") == "1":
        traceback.print_exception(cause_of(error))
    else:
        print(message, *getattr(cause_of(error), "__notes__", []), sep="\n", file=sys.stderr)
    return error.exit_code if isinstance(error, Interrupted) else 1


def explain(error: BaseException | None) -> str:
    """Describes any error in one or two lines."""
    if not isinstance(error, Exception):
        return type(error).__name__
    error = cause_of(error)
    message = _explain(error)
    return message.removeprefix("error: ") if message else f"{type(error).__name__}: {error}"


def cause_of(error: Exception) -> Exception:
    """The error that a constructor raised, without Hydra's wrapping."""
    while isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def is_ours(error: BaseException) -> bool:
    """Whether this project's own code raised it."""
    return _is_in(error, *OURS)


def _is_in(error: BaseException, *places: Path) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(Path(frames[-1].filename).is_relative_to(place) for place in places)


def is_explained(error: Exception) -> bool:
    """Whether a user gets one or two lines for the error, wherever it was raised."""
    return isinstance(error, Interrupted | HydraException | ImportError) and _explain(error) is not None


def _explain(error: Exception) -> str | None:
    """One or two lines for a user's mistake, or None."""
    if isinstance(error, Interrupted):
        return str(error)
    reason = _in_what_was_typed(error) or _system_fault(error)
    if reason is None and is_ours(error) and isinstance(error, (ValueError, OSError)):
        reason = str(error)
    if reason is None and isinstance(error, OSError) and error.filename is not None:
        reason = f"{error.strerror}: {error.filename}"
    return None if reason is None else "error: " + re.sub(LONG, r"\1...", reason)


def _in_what_was_typed(error: Exception) -> str | None:
    """Explains a wrong override; None for other errors."""
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error)
    if isinstance(error, ConfigCompositionException):
        return _unknown_key(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error)
    if isinstance(error, OmegaConfBaseException):
        typed = " ".join(argument for argument in sys.argv[1:] if "${" in argument)
        return f"{error.full_key or typed or 'configuration'}: {str(error).splitlines()[0]}"
    if isinstance(error, (ImportError, InstantiationException)) and (reason := _not_importable(error)):
        return reason
    if isinstance(error, HydraException):
        return " ".join(str(error).split("\n")[:2])
    if isinstance(error, KeyError):
        return _deleted(error)
    return _refused_by_hydra(error) if _is_in(error, HYDRA) and isinstance(error, ValueError) else None


def _deleted(error: KeyError) -> str | None:
    """Names the typed override that deleted the missing key; None if none did."""
    deleted = [typed for typed in _overrides() if typed.startswith("~")]
    keys = [typed[1:].partition("=")[0] for typed in deleted]
    found = [key for key in keys if error.args[:1] == (key.rpartition(".")[2],)]
    return f"~{found[0]} deletes a required setting: leave it out" if found else None


FAULTS = {
    errno.ENOSPC: "free some space, or choose another run_dir",
    errno.EDQUOT: "free some space, or choose another run_dir",
    errno.EMFILE: "allow more open files: ulimit -n 4096",
    errno.ENFILE: "close other programs: this machine has too many open files",
    errno.EAGAIN: "allow more processes (ulimit -u), or use fewer: env_runner.n_workers=0 workspace.n_loader_workers=0",
    errno.ENOMEM: "close other programs, or reduce workspace.batch_size, env_runner.n_envs or env_runner.n_workers",
    errno.EROFS: "choose a writable run_dir",
}
"""Advice by error of the operating system, whichever library met it."""


def _system_fault(error: BaseException | None) -> str | None:
    """Explains an error of the operating system among the causes of `error`; None for other errors."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FAULTS:
            what = str(error) if error.args[1:] else os.strerror(error.errno)
            return f"{what}: {FAULTS[error.errno]}. What was saved before is intact"
        if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
            return f"{error}: {FAULTS[errno.EAGAIN]}. What was saved before is intact"
        error = error.__cause__ or error.__context__
    return None


def _not_importable(error: Exception) -> str | None:
    """Explains why a `_target_` cannot be imported; None for other errors."""
    text = str(error)
    named = re.search(r"Error (?:loading|locating target) '([^']+)'", text)
    if named is None:
        return None
    reasons = [line for line in text.splitlines() if re.match(r"\w*(Error|Exception)\(", line)]
    module, _, name = named[1].rpartition(".")
    if module in sys.modules:
        close = difflib.get_close_matches(name, vars(sys.modules[module]))
        return f"{module} has no {name}" + (f". Did you mean {' or '.join(close)}?" if close else "")
    missing = f" ({reasons[-1]})" if reasons else ""
    return (
        f"{named[1]} cannot be imported{missing}. Install your own package (pip install -e), or put its folder on "
        "the path: PYTHONPATH=FOLDER python run.py ..."
    )


def _unknown_choice(error: MissingConfigException) -> str:
    """'encoder/resnet8' -> the closest file of that group."""
    if any(typed.startswith(("--config-path", "-cp", "--config-name", "-cn")) for typed in sys.argv):
        return " ".join(str(error).split("\n")[:2]) + ". Hydra looks for it where --config-path and --config-name say"
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if group == "":
        group, choice = choice, ""
    options = sorted(error.options or _options(group))
    if group == "hydra/launcher":
        return f"{choice} is not installed: pip install 'dp-pusht[{choice.partition('_')[0]}]'"
    return f"unknown choice {group}={choice}. {suggestion(choice, options)}"


def _unreadable(error: OverrideParseException) -> str:
    """Explains a syntax error of an override in words other than the parser's."""
    override = error.override.strip()
    reason = str(error).strip().splitlines()[-1]
    if "while evaluating" in reason:
        return f"{override}: {reason.partition(': ')[2]}"
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override} has no value, expected KEY=VALUE"
    if not re.fullmatch(r"[~+]{0,2}[\w$-]+([./@:][\w$-]+)*", key, re.ASCII):
        return f"{override}: {key or 'nothing'} is not a key, expected KEY=VALUE with a key such as workspace.num_steps"
    quoted = value.strip("'\"").replace('"', '\\"')
    return (
        f"{override} cannot be read: close brackets and quotes, and put a value with spaces, special or non-ASCII "
        f"characters in quotes within quotes: '{key}=\"{quoted}\"'"
    )


def _refused_by_hydra(error: ValueError) -> str:
    """Hydra's message, except for a group that is set to something other than a choice."""
    text = str(error).split("\n")[0]
    if "Config group override" not in text:
        return text
    groups = {"", "hydra", *_groups()}
    read = OverridesParser.create().parse_overrides([typed for typed in sys.argv[1:] if "=" in typed])
    found = [o.input_line or "" for o in read if o.key_or_group in groups and not isinstance(o.value(), str | list)]
    return (
        f"{' '.join(found)}: expected KEY=VALUE, and for a group one of its choices (encoder=cnn; "
        "python run.py --help lists them)"
    )


def _example(override: str) -> str:
    """Names the default of a setting, to follow a comma."""
    key = override.lstrip("+~").partition("=")[0]
    config = _loader().load_configuration("config", [], run_mode=RunMode.RUN, from_shell=False)
    held = OmegaConf.select(config, key, default=None) if "@" not in key else None
    return f"expected a value such as {held}" if held is not None else "expected a value for each key below it"


def _unknown_key(error: ConfigCompositionException) -> str:
    first = str(error).split("\n")[0]
    ambiguous = re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", first)
    if ambiguous is not None:
        key, values = ambiguous.groups()
        return (
            f"{key}={values} has several values: -m (--multirun) sweeps over them, {key}=[{values}] is a list, and "
            f"'{key}=\"{values}\"' is a text"
        )
    if "--multirun" in first:
        return first
    if first.startswith("Error merging override"):
        override = re.sub(r"^Error merging override '?|'?(: [A-Z].*)?$", "", first)
        return f"{override} has the wrong kind of value for this setting, {_example(override)}"
    typed = re.search(r"Could not override '([^']+)'|Key '([^']+)'", first)
    if typed is None:
        cause = f": {error.__cause__}" if error.__cause__ else ""
        return " ".join(f"{first}{cause}".split("\n")[:2])
    key = (typed.group(1) or typed.group(2)).split("@")[0]
    if key in _groups():
        return f"{key} is a group without a default: write +{key}=... ({', '.join(_options(key))})"
    known = [*_keys(), *_groups()]
    if any(name == key or name.startswith(f"{key}.") for name in known):
        return f"{key} does not hold these keys: write ++{key}.KEY=VALUE for each key to add or set"
    return f"unknown key {key}. {suggestion(key, known)}"


def _overrides() -> list[str]:
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _loader() -> ConfigLoader:
    return GlobalHydra.instance().config_loader() if GlobalHydra.instance().is_initialized() else _fresh_loader()


def _fresh_loader() -> ConfigLoader:
    from hydra import initialize_config_dir

    initialize_config_dir(str(Path(__file__).parent.parent / "configs"), version_base="1.3")
    return GlobalHydra.instance().config_loader()


def _options(group: str) -> list[str]:
    return _loader().get_group_options(group)


def _groups() -> list[str]:
    return _loader().list_groups("")


def _keys() -> list[str]:
    """Every key of the default configuration, with dots."""
    from workspaces.settings import flatten  # here, because this file is imported before a run is

    config = _loader().load_configuration("config", [], run_mode=RunMode.RUN, from_shell=False)
    with_hydra = OmegaConf.to_container(config, resolve=False)
    assert isinstance(with_hydra, dict)
    with_hydra.pop("hydra", None)
    return [key for key in flatten(with_hydra) if not key.endswith("_")]
