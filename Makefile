# On a fresh machine: `make demo` shows a trained policy, `make run` trains one, `make test` tests. Python 3.11-3.13.
PYTHON ?= python3
ARGS ?=
POLICY ?= pusht_image_small
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: run demo test check bench clean

run: .venv/installed
	@experiment=$$($(BIN)/python -c "import torch; print('pusht_image' if torch.cuda.is_available() else 'pusht_image_small')") && \
	echo "python run.py +experiment=$$experiment $(ARGS)" && \
	$(BIN)/python run.py +experiment=$$experiment $(ARGS)

demo: .venv/installed
	@$(BIN)/python run.py workspace=evaluate checkpoint=bundled/$(POLICY) env_runner.n_episodes=2 env_runner.n_videos=2 \
		env_runner.n_workers=0 logger.mode=disabled run_dir=outputs/demo $(ARGS)
	@echo "Next: . $(BIN)/activate"
	@echo "      test it on 500 episodes:  python run.py workspace=evaluate checkpoint=bundled/$(POLICY) env_runner.protocol=paper-500"
	@echo "      train your own policy:    make run"

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed .venv-lerobot/installed
	$(BIN)/python -m benchmarks --into docs/performance.md

clean:
	rm -rf .venv .venv-lerobot .pytest_cache .ruff_cache .mypy_cache *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f'Python {v[0]}.{v[1]} found, 3.11 to 3.13 needed: make PYTHON=python3.12 $(MAKECMDGOALS)')"
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) --editable '.[dev]'
	touch $@

# LeRobot wants other versions of torch and diffusers than this project: it is a rival in `make bench`, and nothing else.
.venv-lerobot/installed:
	$(PYTHON) -m venv .venv-lerobot
	.venv-lerobot/bin/python -m pip install --quiet --disable-pip-version-check lerobot==0.4.4
	touch $@
