"""The facts of a task: which arrays are observations, where episodes start. One file each."""
