"""File formats of episodes. One file each."""
