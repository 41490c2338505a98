"""One picture from pixels to delivered: encoded, stored, committed, each step tried again after what may pass.

Called in threads beside the rendering one, and in the delivery process. Nothing here may load torch.
"""

from __future__ import annotations

from django.core.files.storage import default_storage

from gpuworker.contract import Rendered
from gpuworker.output import picture_store
from gpuworker.retrying import retried
from renderjobs.claims import ClaimedBatch, ClaimedImage, LeaseLost
from renderjobs.delivery import StoredPicture, image_deliver

DELIVERY_THREADS = 4


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
