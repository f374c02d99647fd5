"""Plans: what memory a profile will use, by closed formulas, without running anything."""
