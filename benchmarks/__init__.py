"""Measurements of speed, memory and machine code: run as modules, from the repository's root."""
