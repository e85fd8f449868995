"""Fills a store with demonstrations, one seed after the other."""

import logging
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field

from dp.data.recording import DemonstrationStore
from dp.progress import Progress
from dp.tasks.demonstration import SOLVED, Demonstration

log = logging.getLogger(__name__)

Made = Generator[tuple[int, Demonstration | str | None], None, None]
"""Demonstrations by seed, or why there is none, in the order of seeds."""

PATIENCE = 500
"""Seeds in a row without a demonstration after which nothing more is expected."""


@dataclass
class Tally:
    """Counts the outcomes of the seeds so far."""

    tried: int = 0
    stored: int = 0
    in_vain: int = 0
    objections: Counter[str] = field(default_factory=Counter)

    def add(self, objection: str | None) -> None:
        self.tried += 1
        self.stored += objection is None
        if objection != SOLVED:  # by the policy: the expert was not asked
            self.in_vain = 0 if objection is None else self.in_vain + 1
        if objection is not None:
            self.objections[objection] += 1

    def __str__(self) -> str:
        left_out = [f"{n} left out ({objection})" for objection, n in sorted(self.objections.items())]
        return ", ".join([f"{self.tried} seeds, {self.stored} stored", *left_out])


def given_up(demonstration: Demonstration | str | None) -> str | None:
    """Reason why there is no demonstration; None for one."""
    return demonstration or "given up by the collector" if isinstance(demonstration, str | None) else None


def fill(
    store: DemonstrationStore,
    n_episodes: int,
    made: Made,
    source: str,
    objection: Callable[[Demonstration | str | None], str | None] = given_up,
) -> None:
    """Stores what is `made` until the store holds `n_episodes`, and closes `made`.

    Args:
        source: who made them.
        objection: reason not to store one, or None.

    Raises:
        ValueError: if there are no more seeds, or none of `PATIENCE` seeds in a row gives a demonstration.
    """
    tally = Tally()
    bar = Progress(total=n_episodes, initial=store.n_episodes, desc="collecting", unit="episode")
    try:
        with closing(made), closing(bar):
            while store.n_episodes < n_episodes:
                seed, demonstration = next(made, (None, None))
                if seed is None:
                    raise ValueError("there is no seed left: set a smaller start_seed")
                reason = objection(demonstration)
                tally.add(reason)
                if reason is None and not isinstance(demonstration, str | None):
                    store.append([demonstration], source)
                    bar.update()
                bar.set_postfix_str(str(tally))
                if tally.in_vain == PATIENCE:
                    raise ValueError(f"no seed from {seed - PATIENCE + 1} to {seed} gave a demonstration: {tally}")
    finally:
        log.info("%s", tally)
