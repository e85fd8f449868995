"""What all commands share: signals, and a run directory that stays the one that was taken."""

import os
import signal
import time

import pytest
from hydra import compose, initialize_config_dir

from tests.test_configs import CONFIGS
from workspaces import build
from workspaces.base import Workspace
from workspaces.signals import Signals, StopNow


@pytest.fixture
def signals():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    signals = Signals()
    with signals:
        yield signals
    signals.restore()
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_burst_of_signals_is_one_request(signals, number):
    for _ in range(8):
        os.kill(os.getpid(), number)
    assert signals.received == number
    assert signals.interrupted("saved").exit_code == 128 + number


def test_a_signal_breaks_off_only_what_may_be(signals):
    signals.interruptible = True
    with pytest.raises(StopNow):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # while the run is saved


def test_a_signal_after_a_while_stops_at_once(signals, monkeypatch):
    os.kill(os.getpid(), signal.SIGINT)
    later = time.monotonic() + Signals.PATIENCE_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_signals_during_the_exit_do_not_cut_it_short():
    signals = Signals()
    with signals:
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    signals.restore()
    assert signal.getsignal(signal.SIGTERM) != signals._handle


def test_a_hang_up_that_nohup_ignores_stays_ignored(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_launcher_that_waits_for_a_signal_gets_it_once_the_run_is_saved():
    called = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: called.append(number))
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert (signals.received, called) == (signal.SIGUSR2, [])
            assert signals.interrupted("saved").exit_code == 128 + signal.SIGUSR2
            assert called == [signal.SIGUSR2]
        signals.restore()
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        with Signals():
            assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGUSR2, before)


class Waits(Workspace):
    """A command that leaves its directory to others."""

    verb = "test"

    computes = False


@pytest.mark.parametrize(("place", "said"), [("/dev/null/x", "Choose another"), ("a\x01b", "has characters")])
def test_what_cannot_be_a_run_directory_is_named(place, said):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = build.settings(compose("config", ["device=cpu"])) | {"run_dir": place}
    with Waits(config) as workspace, pytest.raises(ValueError, match=f"run_dir=.*{said}"):
        workspace.take_run_dir()


def test_a_run_directory_that_was_deleted_is_an_error_and_is_not_made_again(tmp_path):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = build.settings(compose("config", [f"run_dir={tmp_path}/run", "device=cpu"]))
    workspace = Waits(config)
    workspace.__enter__()
    workspace.take_run_dir()
    workspace.begin_run()
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="was deleted or replaced"):
        workspace.__exit__(None, None, None)
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "elsewhere/run.json").is_file()
