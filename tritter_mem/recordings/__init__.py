"""Recorded memory snapshots, replayed under other allocator settings."""
