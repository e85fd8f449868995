"""Verbs: the life of one run each. They wire the nouns of `dp`, drive them, log and save."""
