"""Where there is no terminal, long work says now and then how far it is."""

import logging

import pytest

from dp import progress


def test_without_a_terminal_it_logs_lines_in_time_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO), progress.Progress(total=50, desc="rollouts", unit="episode") as bar:
        for seconds, ended in ((10, 0), (31, 0), (40, 12), (70, 0)):
            now[0] = seconds
            bar.update(ended)
            bar.refresh()
    assert caplog.messages == ["rollouts: 0/50 episodes", "rollouts: 12/50 episodes"]
    assert capsys.readouterr().err == ""
