"""Paired measurements: both sides in one run, alternating, never an absolute number as a pass criterion."""
