"""What can be loaded: checkpoints and other weights, from upload to approval. Imports ``common``, ``accounts``, ``fleet``."""
