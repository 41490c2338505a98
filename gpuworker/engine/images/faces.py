"""Face restoration: an optional part. The renderer is given the restorers that are installed; this installation may have none.

Here is only what A1111 does around one: the blend with the picture it was given.

Source: ``scripts/postprocessing_gfpgan.py``, ``scripts/postprocessing_codeformer.py``, A1111 1.10.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from gpuworker.contract.extras import FACES_MISSING
from gpuworker.engine.errors import ComponentMissingError

FaceRestorer = Callable[[np.ndarray, float], np.ndarray]
"""uint8 (height, width, 3) and CodeFormer's weight → the same picture with better faces."""


def restored(
    picture: Image.Image, name: str, visibility: float, installed: Mapping[str, FaceRestorer], weight: float = 0.0
) -> Image.Image:
    """The picture with faces restored as far as ``visibility`` says; 0 asks nothing of anyone.

    Raises:
        ComponentMissingError: No restorer of that name is installed.
    """
    if not visibility:
        return picture
    if name not in installed:
        raise ComponentMissingError(FACES_MISSING.format(name))
    given = picture.convert("RGB")
    made = Image.fromarray(installed[name](np.asarray(given), weight))
    return Image.blend(given, made, visibility) if visibility < 1.0 else made
