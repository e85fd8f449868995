"""Runs a command within another one, as if it had been typed."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict, read_write

from workspaces import build
from workspaces.base import Workspace


@contextlib.contextmanager
def command(overrides: Sequence[str]) -> Iterator[Workspace]:
    """The workspace of `python run.py` with these overrides, entered. The run that it is part of goes on afterwards.

    Raises what the command does.
    """
    outer, handlers, logger = HydraConfig.instance().cfg, list(logging.getLogger().handlers), logging.getLogger()
    loader = GlobalHydra.instance().config_loader()
    composed = loader.load_configuration("config", list(overrides), RunMode.RUN, from_shell=False)
    logger.handlers.clear()  # the command would close those that it finds
    try:
        HydraConfig.instance().set_config(composed)
        with read_write(composed), open_dict(composed):
            OmegaConf.update(composed, "hydra", None)
            del composed["hydra"]
        with build.workspace(composed) as workspace:
            yield workspace
    finally:
        HydraConfig.instance().cfg = outer
        logger.handlers[:] = handlers
