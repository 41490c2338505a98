"""The miniature checkpoint: how it is drawn for, trained, exported and judged.

Nothing of the running platform imports this package; it needs torch and diffusers only.
"""
