"""Profiles: their schema, their loading from YAML, and the table of cards."""
