"""Optuna's journal, whatever a crash left of it."""

from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna")

from optuna.storages import JournalStorage  # noqa: E402
from optuna.storages.journal import JournalFileBackend  # noqa: E402

from workspaces.search import mend  # noqa: E402


def study(journal: Path) -> "optuna.Study":
    storage = JournalStorage(JournalFileBackend(str(journal)))
    return optuna.create_study(study_name="a", storage=storage, load_if_exists=True)


@pytest.mark.parametrize(
    "tail", [b'{"op_code": 5, "wor', b"\0" * 100, b'{"op_code"\n', b'{"op{"op_code":1}\n{"op_code":1}\n']
)
def test_a_journal_that_was_cut_goes_on(tmp_path: Path, tail: bytes) -> None:
    journal = tmp_path / "optuna.journal"
    study(journal).tell(study(journal).ask(), 0.5)
    assert mend(journal) == 0
    whole = journal.read_bytes()
    journal.write_bytes(whole + tail)
    assert mend(journal) == len(tail)
    assert journal.read_bytes() == whole
    assert study(journal).best_value == 0.5
    study(journal).tell(study(journal).ask(), 0.7)
    assert len(study(journal).trials) == 2


def test_no_journal_is_nothing_to_mend(tmp_path: Path) -> None:
    assert mend(tmp_path / "none") == 0
