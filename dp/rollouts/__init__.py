"""Episodes of a policy in any environment (`dp.types.Env`). Env workers import parts of it without torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp.rollouts.elsewhere import Elsewhere as Elsewhere
    from dp.rollouts.runner import EnvRunner as EnvRunner


def __getattr__(name: str) -> Any:
    if name == "EnvRunner":
        from dp.rollouts.runner import EnvRunner

        return EnvRunner
    if name == "Elsewhere":
        from dp.rollouts.elsewhere import Elsewhere

        return Elsewhere
    raise AttributeError(name)
