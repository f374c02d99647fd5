"""Baselines and regression checks: today's memory compared with what was committed."""
