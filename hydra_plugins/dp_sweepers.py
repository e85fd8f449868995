"""Hydra finds its plugins in this package, and only here: the sweepers behind `python run.py -m`.

`workspaces/sweep.py` implements sweeps. Hydra imports this file at every start, so it imports next to nothing.
"""

import inspect
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dp.limits import Positive

if TYPE_CHECKING:
    from workspaces.sweep import Sweep


class _Sweeper(Sweeper):
    """Base class of both sweepers.

    Args:
        params: override -> values, as on the command line, which takes precedence.
        along: override of a swept key -> overrides that go along with it.
        status_s: seconds between two status tables.
    """

    def __init__(
        self,
        params: dict[str, str] | None,
        along: dict[str, str] | None,
        status_s: Annotated[float, Interval(gt=0, le=86_400)],
    ) -> None:
        self._check({"params": params, "along": along, "status_s": status_s})
        self.params, self.along, self.status_s = params or {}, along or {}, status_s

    def _check(self, settings: dict[str, Any]) -> None:
        """Raises ValueError for values that the constructor does not declare."""
        from workspaces.arguments import check_value

        for name, value in settings.items():
            check_value(f"hydra.sweeper.{name}", value, inspect.signature(type(self)).parameters[name].annotation)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        def launch(jobs: list[list[str]], first: int) -> None:
            launcher = Plugins.instance().instantiate_launcher(  # only now does the sweep have its directory
                hydra_context=hydra_context, task_function=task_function, config=config
            )
            launcher.launch(jobs, initial_job_idx=first)

        self._made_of = (config, hydra_context.config_loader, launch)

    def begin(self, arguments: list[str]) -> "Sweep":
        from workspaces.sweep import Sweep

        return Sweep(*self._made_of, self.params, self.along, arguments, self.status_s)


class GridSweeper(_Sweeper):
    """Runs every combination of the given values."""

    def sweep(self, arguments: list[str]) -> Any:
        with self.begin(arguments) as sweep:
            sweep.run(sweep.grid())


class OptunaSweeper(_Sweeper):
    """Lets Optuna choose the values that maximise the score that a job returns.

    Args:
        n_trials: jobs in all.
        n_parallel: jobs that are chosen, and launched, at once.
        sampler: any of `optuna.samplers`.
    """

    def __init__(
        self,
        params: dict[str, str] | None,
        along: dict[str, str] | None,
        status_s: Annotated[float, Interval(gt=0, le=86_400)],
        n_trials: Positive,
        n_parallel: Positive,
        sampler: Any,
    ) -> None:
        super().__init__(params, along, status_s)
        self._check({"status_s": status_s, "n_trials": n_trials, "n_parallel": n_parallel})
        self.n_trials, self.n_parallel, self.sampler = n_trials, n_parallel, sampler

    def sweep(self, arguments: list[str]) -> Any:
        from workspaces.search import search

        with self.begin(arguments) as sweep:
            search(sweep, self.n_trials, self.n_parallel, self.sampler)
