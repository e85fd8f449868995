"""Meta-World (Yu et al. 2019), version 3: fifty tasks of a Sawyer arm. Needs the extra `metaworld`."""

from dp.tasks.metaworld.env import MetaWorldEnv
from dp.tasks.metaworld.task import MetaWorld

__all__ = ["MetaWorld", "MetaWorldEnv"]
