"""Mechanism without business words: errors, problem+json, identifiers, query helpers. Imports nothing of ours."""
