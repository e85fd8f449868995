"""Diffusion Policy (Chi et al. 2023, arXiv 2303.04137): tensors in, tensors out.

Nothing in here knows Hydra, OmegaConf or wandb: a robot or a notebook imports `dp` alone.
"""
