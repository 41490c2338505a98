"""How many more images may run of those whom a quota of running images names. What is beyond it waits its turn in the queue.

Where there is no such quota a claim pays one look at a small table.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.db.models import QuerySet

from billing.models import Measure, Quota
from billing.quotas import uses_of, whose_rows
from renderjobs.models import RenderImage, RenderJob


@dataclass(frozen=True, slots=True)
class RunningRoom:
    """Each quota with what is left of it."""

    left: tuple[tuple[Quota, int], ...]

    @classmethod
    def of_now(cls) -> RunningRoom:
        return cls._of(Quota.objects.filter(measure=Measure.RUNNING_IMAGES, enabled=True))

    def locked(self) -> RunningRoom:
        """Read again under the quotas' locks, so that two claims take turns. Quotas are locked before jobs, as at a submission."""
        if not self.left:
            return self
        mine = Quota.objects.filter(pk__in=[quota.pk for quota, _ in self.left], enabled=True)
        return self._of(mine.select_for_update().order_by("pk"))

    @classmethod
    def _of(cls, quotas: QuerySet[Quota]) -> RunningRoom:
        found = list(quotas)
        uses = uses_of(found) if found else []
        return cls(tuple((use.quota, use.quota.limit - use.used) for use in uses))

    def of_those_with_room(self, images: QuerySet[RenderImage]) -> QuerySet[RenderImage]:
        for quota, left in self.left:
            if left <= 0:
                full = RenderJob.objects.filter(whose_rows(quota))
                images = images.exclude(job__in=full) if whose_rows(quota) else images.none()
        return images

    def taken_by(self, images: Sequence[RenderImage], jobs: Mapping[uuid.UUID, RenderJob]) -> list[RenderImage]:
        """The images, in their order, as far as there is room for them."""
        left = {quota.pk: free for quota, free in self.left}
        taken = []
        for image in images:
            concerned = [quota.pk for quota, _ in self.left if concerns(quota, jobs[image.job_id])]
            if all(left[pk] > 0 for pk in concerned):
                taken.append(image)
                left.update({pk: left[pk] - 1 for pk in concerned})
        return taken


def concerns(quota: Quota, job: RenderJob) -> bool:
    """The rule of ``whose_rows`` for one job."""
    pairs = ((quota.team_id, job.team_id), (quota.user_id, job.user_id), (quota.token_id, job.token_id))
    return all(wanted in (None, has) for wanted, has in pairs)
