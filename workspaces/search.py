"""Optuna (Akiba et al. 2019) as a sweeper: it chooses values and learns the scores of their jobs.

Hydra's own plugin holds Optuna at 2.10, whose storage does not work with today's SQLAlchemy. A journal file does: a
killed search resumes with its unfinished trials.
"""

import json
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from dp.files import write_bytes
from workspaces.sweep import Job, Sweep

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState
except ModuleNotFoundError as error:
    raise ValueError(f"hydra/sweeper=optuna needs more: pip install 'dp-pusht[optuna]' ({error})") from None

FILE = "optuna.journal"


def search(sweep: Sweep, n_trials: int, n_parallel: int, sampler: Any) -> None:
    """Runs `n_trials` jobs, `n_parallel` at once, with values that Optuna chooses to make the score large.

    A trial whose job fails counts, as failed. Raises ValueError if no key has a range, or a value is not one.
    """
    space = {key: distribution(key, override) for key, override in sweep.swept.items()}
    if not space:
        raise ValueError("nothing to search: set a range, for example 'optimizer.lr=tag(log,interval(1e-4,1e-3))'")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if lost := mend(sweep.dir / FILE):
        sweep.say(f"{sweep.dir / FILE} was damaged: its last {lost:,} bytes were moved to {FILE}.damaged")
    study = optuna.create_study(
        study_name=sweep.dir.name,
        storage=JournalStorage(JournalFileBackend(str(sweep.dir / FILE))),
        sampler=sampler,
        direction="maximize",
        load_if_exists=True,
    )
    sweep.add([_job(sweep, t.number, t.params) for t in study.trials if t.state.is_finished()])
    while batch := _next(study, space, n_trials, n_parallel):
        jobs = {number: _job(sweep, number, values) for number, values in batch.items()}
        sweep.run([list(jobs.values())])
        for number, job in jobs.items():
            score = sweep.score(job)
            study.tell(number, score, state=TrialState.FAIL if score is None else TrialState.COMPLETE)
    if any(trial.state == TrialState.COMPLETE for trial in study.trials):
        sweep.say(f"\nbest score {study.best_value:.3f} in trial {study.best_trial.number}: {study.best_params}")


def mend(journal: Path) -> int:
    """Cuts off an incomplete last line of a journal, which Optuna would refuse. Returns its bytes.

    A process that is killed while it writes leaves half a line, and the next one appends to it.
    """
    content = journal.read_bytes() if journal.is_file() else b""
    whole = 0
    for line in content.splitlines(keepends=True):
        try:
            json.loads(line)
        except ValueError:
            break
        whole += len(line) if line.endswith(b"\n") else 0
    if whole < len(content):
        write_bytes(journal.with_name(f"{journal.name}.damaged"), content)
        write_bytes(journal, content[:whole])
    return len(content) - whole


def _next(
    study: optuna.Study, space: dict[str, BaseDistribution], n_trials: int, n_parallel: int
) -> dict[int, dict[str, Any]]:
    """Number and values of the trials to run now: those without a score, then new ones."""
    left = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
    if left:
        return {trial.number: trial.params for trial in left}
    n = min(n_parallel, n_trials - len(study.get_trials(deepcopy=False)))
    return {trial.number: trial.params for trial in (study.ask(space) for _ in range(n))}


def _job(sweep: Sweep, number: int, values: dict[str, Any]) -> Job:
    return sweep.job({key: str(value) for key, value in values.items()}, prefix=f"{number:04d}")


def distribution(key: str, override: Override) -> BaseDistribution:
    """choice(a,b) or a,b · range(a,b[,step]) of whole numbers · interval(a,b), under tag(log, ...) if wanted."""
    value: Any = override.value()
    log = "log" in getattr(value, "tags", ())
    if override.is_choice_sweep():
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    if override.is_range_sweep():
        if any(not isinstance(n, int) for n in (value.start, value.stop, value.step)):
            raise ValueError(f"{key}: expected a range of whole numbers, interval(a,b) is for others")
        return IntDistribution(value.start, value.stop - 1, log=log, step=1 if log else value.step)
    if override.is_interval_sweep():
        return FloatDistribution(float(value.start), float(value.end), log=log)
    raise ValueError(f"{override.input_line}: expected choice, range or interval")
