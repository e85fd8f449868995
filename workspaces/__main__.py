"""`dp ...` and `python -m workspaces ...`: the installed `run.py`, from any directory."""

import runpy
from pathlib import Path


def main() -> None:
    """Runs `run.py` as the main program, which worker processes find again."""
    runpy.run_path(str(Path(__file__).parent.parent / "run.py"), run_name="__main__")


if __name__ == "__main__":
    main()
