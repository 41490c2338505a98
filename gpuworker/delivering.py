"""One picture from pixels to delivered: encoded, stored, committed, each step tried again after what may pass.

Called in threads beside the rendering one, and in the delivery process. Nothing here may load torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from django.core.files.storage import default_storage
from django.db import InterfaceError, OperationalError, close_old_connections

from gpuworker.contract import Rendered
from gpuworker.output import picture_store
from renderjobs.claims import ClaimedBatch, ClaimedImage, LeaseLost
from renderjobs.delivery import StoredPicture, image_deliver

DELIVERY_THREADS = 4
DELIVERY_TRIES = 5


def picture_deliver(batch: ClaimedBatch, image: ClaimedImage, rendered: Rendered) -> None:
    """
    Raises:
        LeaseLost: The image is not this worker's any more; what was stored is removed.
    """
    # Each storage backend raises errors of its own, so any of them is tried again.
    picture: StoredPicture = retried(lambda: picture_store(image, rendered), errors=(Exception,))
    try:
        retried(lambda: image_deliver(batch=batch, image=image, picture=picture, gpu_us=rendered.gpu_us))
    except LeaseLost:
        for key in (picture.key, *(attachment.key for attachment in picture.attachments)):
            default_storage.delete(key)
        raise


def retried(
    work: Callable[[], Any], *, errors: tuple[type[Exception], ...] = (OperationalError, InterfaceError)
) -> Any:
    """Run ``work`` again, a few times with growing pauses, after an error that may pass."""
    for attempt in pauses():
        try:
            return work()
        except errors:
            if attempt is None:
                raise
            time.sleep(attempt)
            close_old_connections()
    raise AssertionError("unreachable")


def pauses() -> Iterable[float | None]:
    """0.2, 0.4, 0.8 … seconds, then None for the last try."""
    return [*(0.2 * 2**exponent for exponent in range(DELIVERY_TRIES - 1)), None]
