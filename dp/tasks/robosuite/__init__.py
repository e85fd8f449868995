"""Robomimic's tasks (Mandlekar et al. 2021), simulated by robosuite (Zhu et al. 2020) in a Python of its own."""

from dp.tasks.robosuite.env import RobosuiteEnv
from dp.tasks.robosuite.task import Robosuite

__all__ = ["Robosuite", "RobosuiteEnv"]
