"""What a user sees when something is wrong: one or two lines for their mistakes, a traceback for ours."""

import difflib
import errno
import os
import re
import sys
import traceback
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException
from hydra.types import RunMode
from omegaconf import OmegaConf

OURS = [Path(__file__).parent, Path(__file__).parent.parent / "dp"]


class Interrupted(Exception):
    """A signal asked the run to stop, and it has saved itself."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def full_tracebacks() -> None:
    """Makes Hydra raise instead of printing: `exit_with_message` does that better."""
    os.environ["DP_TRACEBACK"] = os.environ.get("DP_TRACEBACK", os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"


def exit_with_message(error: Exception) -> int:
    """Prints what went wrong and returns the exit code."""
    message = _explain(_root(error))
    if message is None or os.environ.get("DP_TRACEBACK") == "1":
        traceback.print_exception(_root(error))
    else:
        print(message, file=sys.stderr)
    return error.exit_code if isinstance(error, Interrupted) else 1


def explain(error: BaseException | None) -> str:
    """In a line or two what went wrong, also where it is not the user's doing."""
    if not isinstance(error, Exception):
        return type(error).__name__
    error = _root(error)
    message = _explain(error)
    return message.removeprefix("error: ") if message else f"{type(error).__name__}: {error}"


def _root(error: Exception) -> Exception:
    """What a constructor raised, without Hydra's wrapping."""
    while isinstance(error, InstantiationException) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def _explain(error: Exception) -> str | None:
    """One or two lines, or None for what is not the user's doing."""
    if isinstance(error, Interrupted):
        return str(error)
    if isinstance(error, MissingConfigException):
        return f"error: {_unknown_choice(error)}"
    if isinstance(error, ConfigCompositionException):
        return f"error: {_unknown_key(error)}"
    if isinstance(error, HydraException):
        return "error: " + " ".join(str(error).split("\n")[:2])
    if isinstance(error, (ImportError, InstantiationException)) and (reason := _not_importable(error)):
        return f"error: {reason}"
    if (fault := _system_fault(error)) is not None:
        return f"error: {fault}"
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    ours = any(raised_in.is_relative_to(place) for place in OURS)
    if ours and isinstance(error, (ValueError, OSError)):
        return f"error: {error}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {error.strerror}: {error.filename}"
    return None


FAULTS = {
    errno.ENOSPC: "free some space, or choose another run_dir",
    errno.EDQUOT: "free some space, or choose another run_dir",
    errno.EMFILE: "allow more open files: ulimit -n 4096",
    errno.ENFILE: "close other programs: this machine has too many files open",
    errno.EAGAIN: "allow more processes (ulimit -u), or use fewer: env_runner.n_workers=0 workspace.n_loader_workers=0",
    errno.ENOMEM: "close other programs, or use less: workspace.batch_size, env_runner.n_envs, env_runner.n_workers",
    errno.EROFS: "choose a run_dir that can be written",
}
"""What helps where the system refuses something, whichever library asked."""


def _system_fault(error: BaseException | None) -> str | None:
    """What the system refused, anywhere in the causes of `error`, and what helps; None for an error of another kind."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FAULTS:
            what = str(error) if error.args[1:] else os.strerror(error.errno)
            return f"{what}: {FAULTS[error.errno]}. What was saved before is intact"
        if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
            return f"{error}: {FAULTS[errno.EAGAIN]}. What was saved before is intact"
        error = error.__cause__ or error.__context__
    return None


def _not_importable(error: Exception) -> str | None:
    """What a `_target_` names, and why it cannot be imported; None for an error of another kind."""
    text = str(error)
    named = re.search(r"Error (?:loading|locating target) '([^']+)'", text)
    if named is None:
        return None
    reasons = [line for line in text.splitlines() if re.match(r"\w*(Error|Exception)\(", line)]
    missing = f" ({reasons[-1]})" if reasons else ""
    return (
        f"{named[1]} cannot be imported{missing}. Install a package of your own (pip install -e), or put its folder on "
        "the path: PYTHONPATH=FOLDER python run.py ..."
    )


def _unknown_choice(error: MissingConfigException) -> str:
    """'encoder/resnet8' -> the closest file of that group."""
    group, _, choice = (error.missing_cfg_file or "").rpartition("/")
    if group == "":
        group, choice = choice, ""
    options = sorted(error.options or _options(group))
    if group == "hydra/launcher":
        return f"{choice} is not installed: pip install 'dp-pusht[{choice.partition('_')[0]}]'"
    return f"unknown choice {group}={choice}. {_suggest(choice, options)}"


def _unknown_key(error: ConfigCompositionException) -> str:
    first = str(error).split("\n")[0]
    typed = re.search(r"Could not override '([^']+)'|Key '([^']+)'", first)
    if typed is None:
        cause = f": {error.__cause__}" if error.__cause__ else ""
        return " ".join(f"{first}{cause}".split("\n")[:2])
    key = (typed.group(1) or typed.group(2)).split("@")[0]
    if key in _groups():
        return f"{key} is a group that is not chosen by default: write +{key}=... ({', '.join(_options(key))})"
    known = [*_keys(), *_groups()]
    if any(name == key or name.startswith(f"{key}.") for name in known):
        return f"{key} holds other keys than these: write ++{key}.KEY=VALUE for each key to add or set"
    return f"unknown key {key}. {_suggest(key, known)}"


def _suggest(typed: str, known: list[str]) -> str:
    close = difflib.get_close_matches(typed, known, n=3, cutoff=0.6)
    if not close:  # what the user typed may be the last part of a longer name
        close = [name for name in known if name.rpartition(".")[2] == typed.rpartition(".")[2]][:3]
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Known: {', '.join(known)}" if len(known) < 16 else "python run.py --cfg job shows every key"


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
