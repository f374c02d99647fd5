"""Finished data: what commands produce and renderers read, with its reading and writing."""
