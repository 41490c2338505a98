"""What ControlNet is shown: maps made of pictures (``preprocess``), fitted to the canvas (``fitting``), per unit (``units``).

Pictures only; the networks and what they do to a pass are in ``models.controlnets`` and ``sampling.control``.
"""
