"""Baselines and regression checks: today's memory held against what was committed."""
