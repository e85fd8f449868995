"""Commands that are printed: pasted into a shell, Hydra reads the very text."""

import shlex
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from workspaces import command

TEXTS = [
    "outputs/a-1", "my run (1)", "a=b", "{1,2}", "é ü", "a\\b", "it's", "a\\'b\\", "$HOME", "${seed}", "\\${x}", "a,b",
    "3", "1e-5", "null", "True", "", "[x]", "#a", "~/x", "*", "`x`", 'a"b', "a!b", "-x",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_value_comes_back_as_it_was(text):
    line = command.run(command.override("run_dir", text), "seed=1")
    python, run, typed, seed = shlex.split(line)
    assert (python, run, seed) == ("python", "run.py", "seed=1")
    value = OverridesParser.create().parse_override(typed).value()
    assert OmegaConf.create({"run_dir": value}).run_dir == text
    assert type(OmegaConf.create({"run_dir": value}).run_dir) is str


def test_a_shell_hands_on_every_value_unchanged():
    overrides = [command.override("run_dir", text) for text in TEXTS]
    line = command.run(*overrides).removeprefix("python run.py")
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    assert printed.stdout.split("\0")[:-1] == overrides


def test_a_plain_value_stays_plain():
    assert command.run(command.override("run_dir", "outputs/a-1")) == "python run.py run_dir=outputs/a-1"


def test_nested_values_come_back_as_they_were():
    meta = {"obs": {"a": {"shape": [3, 12], "key": "data/top cam, 1"}, "b_1": {"key": "it's: {x}"}}, "action": "???"}
    _, _, typed = shlex.split(command.run(command.override("task.shape_meta", meta)))
    assert OverridesParser.create().parse_override(typed).value() == meta
