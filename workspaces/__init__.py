"""Verbs, each the life of one run. They wire the nouns of `dp`, drive them, log and save."""
