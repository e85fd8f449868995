"""The networks that are raced, in words that every contender understands. Standard library only."""

NETWORKS: dict[str, dict] = {
    "state_small": {"encoder": "state", "channels": [64, 128, 256], "kernel": 3, "norm": "layer", "batch": 256},
    "image_small": {"encoder": "cnn", "channels": [64, 128, 256], "kernel": 3, "norm": "layer", "batch": 64},
    "image_middle": {"encoder": "resnet18", "channels": [128, 256, 512], "kernel": 5, "norm": "group", "batch": 64},
    "image_full": {"encoder": "resnet18", "channels": [256, 512, 1024], "kernel": 5, "norm": "group", "batch": 64},
    "image_paper": {"encoder": "resnet18", "channels": [512, 1024, 2048], "kernel": 5, "norm": "group", "batch": 64},
}
"""`batch` is the training batch. Step embedding 128, 8 groups, To=2, H=16 everywhere."""

DENOISERS: dict[str, tuple[str, ...]] = {
    "unet1d_small": ("denoiser.channels=[16,32]", "denoiser.step_embed_dim=16"),
    **dict.fromkeys(("transformer_small", "dit_small", "mlp_small"), ("denoiser.width=32", "denoiser.n_layers=2")),
}
"""Denoisers that a CPU trains -> overrides that make them tiny."""
