"""Runs a command within another one, as if it had been typed."""

import contextlib
import logging
from collections.abc import Iterator, Sequence

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from workspaces import build
from workspaces.base import Workspace


def composed(overrides: Sequence[str]) -> DictConfig:
    """The configuration of `python run.py` with these overrides, Hydra's own part included.

    Raises what Hydra raises for overrides that it cannot read.
    """
    loader, name = GlobalHydra.instance().config_loader(), HydraConfig.get().job.config_name
    return loader.load_configuration(name, list(overrides), RunMode.RUN, from_shell=False)


@contextlib.contextmanager
def command(overrides: Sequence[str]) -> Iterator[Workspace]:
    """The workspace of `python run.py` with these overrides, entered. The run that it is part of goes on afterwards.

    Raises what the command does.
    """
    outer, handlers, logger = HydraConfig.instance().cfg, list(logging.getLogger().handlers), logging.getLogger()
    config = composed(overrides)
    logger.handlers.clear()  # the command would close those that it finds
    try:
        HydraConfig.instance().set_config(config)
        with build.workspace(without_hydra(config)) as workspace:
            yield workspace
    finally:
        HydraConfig.instance().cfg = outer
        logger.handlers[:] = handlers


def without_hydra(config: DictConfig) -> DictConfig:
    """The configuration as a command gets it. Changes `config`."""
    with read_write(config), open_dict(config):
        del config["hydra"]
    return config
