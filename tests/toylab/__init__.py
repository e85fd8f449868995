"""A stranger's package: a task, an encoder, an objective and a scheduler. Nothing in this project knows it.

`tests/test_own_package.py` copies it to another place and uses it from there.
"""
