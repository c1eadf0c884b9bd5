"""Scores: exact and partial matches, breakdowns, thresholds, the HTML report."""
