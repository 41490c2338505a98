"""Where it runs: pools and the workers in them. Imports ``common`` and ``accounts``."""
