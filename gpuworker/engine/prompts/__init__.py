"""From prompt text to conditioning: the grammar (no torch) and the encoder."""
