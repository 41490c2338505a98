"""Services as PAI-EAS has them: an address by name, a token, an input queue of requests and a sink queue of results.

A frame's index grows with its queue and is never given twice; ``EasQueue.last_index`` is the only source of it.
"""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models, transaction
from django.db.models import Q

from accounts.models import ApiToken, Team, User
from assets.models import AssetKind, Part
from billing.deployment_clock import deployment_log
from fleet.models import Pool
from renderjobs.models.jobs import RenderJob


class EasEdition(models.TextChoices):
    STANDARD = "standard", "Standard"
    API = "api", "API"
    CLUSTER = "cluster", "Cluster WebUI"
    SERVERLESS = "serverless", "Serverless"


class PublicFolder(models.TextChoices):
    """Folders of which a cluster's users may be shown the public one."""

    LORA = "lora", "LoRA"
    VAE = "vae", "VAE"
    GFPGAN = "gfpgan", "GFPGAN"
    EMBEDDINGS = "embeddings", "Embeddings"
    HYPERNETWORKS = "hypernetworks", "Hypernetworks"
    EXTENSIONS = "extensions", "Extensions"


CLUSTER_PARTS = {
    AssetKind.LORA: (PublicFolder.LORA, Part.ALL),
    AssetKind.VAE: (PublicFolder.VAE, Part.PUBLIC),
    AssetKind.EMBEDDING: (PublicFolder.EMBEDDINGS, Part.PUBLIC),
    AssetKind.HYPERNETWORK: (PublicFolder.HYPERNETWORKS, Part.PUBLIC),
}
"""Kind → its folder, and what a cluster's calls see when the public one is given. Without it: their own. Of other kinds: all."""


class QueueKind(models.TextChoices):
    INPUT = "input"
    SINK = "sink"


def require_public_folders(value: Any) -> None:
    """Raises: ValidationError: It is no list of folders, or names one twice."""
    known = PublicFolder.values
    if not isinstance(value, list) or any(one not in known for one in value) or len(set(value)) != len(value):
        raise ValidationError(f"Public folders are a list of {', '.join(known)}, each at most once.")


MAX_TABS, MAX_TAB = 50, 100


def require_tabs(value: Any) -> None:
    """Raises: ValidationError: It is no list of names of tabs."""
    if not isinstance(value, list) or len(value) > MAX_TABS or not all(_is_tab(name) for name in value):
        raise ValidationError(f"Hidden tabs are a list of at most {MAX_TABS} names of at most {MAX_TAB} characters.")


def _is_tab(name: Any) -> bool:
    return isinstance(name, str) and name.strip() == name and 0 < len(name) <= MAX_TAB and name.isprintable()


def default_mounts() -> dict[str, str]:
    return dict(settings.EAS_MOUNTS)


class EasServiceQuerySet(models.QuerySet["EasService"]):
    def visible_to(self, user: User) -> EasServiceQuerySet:
        """Services of the user's teams; a superuser sees all."""
        return self if user.is_superuser else self.filter(team__memberships__user=user)

    def named(self, name: str) -> EasServiceQuerySet:
        """By the name that a caller gave, which may be none that a database can look for."""
        return self.none() if "\0" in name else self.filter(name=name)


class EasService(models.Model):
    """What a deployment is on the original: here it is an address with a token, limits and folders of one team."""

    name = models.CharField(
        max_length=128,
        unique=True,
        validators=[RegexValidator(r"^[A-Za-z0-9_][\w.-]*\Z", "Letters, digits, dots, hyphens and underscores.")],
    )
    edition = models.CharField(max_length=16, choices=EasEdition, default=EasEdition.API)
    enabled = models.BooleanField(default=True, help_text="A stopped service keeps its queues and answers 404.")
    team = models.ForeignKey(Team, on_delete=models.PROTECT, related_name="eas_services")
    user = models.ForeignKey(
        User, on_delete=models.PROTECT, related_name="+", editable=False, help_text="As whom its token acts."
    )
    token = models.OneToOneField(ApiToken, on_delete=models.PROTECT, related_name="eas_service", editable=False)
    token_nonce = models.CharField(
        max_length=64, editable=False, help_text="The token is derived from it and a secret."
    )
    pool = models.ForeignKey(
        Pool, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", help_text="Empty: where any job goes."
    )
    replicas = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text="Instances that are deployed for it.",
    )
    mounts = models.JSONField(
        default=default_mounts,
        blank=True,
        help_text="Mount path → folder within the team's stored files; save_dir is looked up here.",
    )
    window = models.PositiveIntegerField(
        default=8,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text="Queued requests that are jobs at the same time.",
    )
    max_delivery = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text="Jobs made for one request, when they fail.",
    )
    max_payload_bytes = models.PositiveIntegerField(
        default=1_048_576, validators=[MinValueValidator(1024), MaxValueValidator(33_554_432)]
    )
    max_frames = models.PositiveIntegerField(
        default=100_000, validators=[MaxValueValidator(1_000_000_000)], help_text="Frames in each queue."
    )
    keepalive_seconds = models.PositiveIntegerField(
        default=600,
        validators=[MinValueValidator(1), MaxValueValidator(1_000_000)],
        help_text="A synchronous call that takes longer gets 408.",
    )
    max_queue_size = models.PositiveIntegerField(
        default=64,
        validators=[MaxValueValidator(1_000_000)],
        help_text="Synchronous calls at the same time; more get 450.",
    )
    rate_limit = models.PositiveIntegerField(
        default=0,
        validators=[MaxValueValidator(1_000_000)],
        help_text="Synchronous calls per second; more get 429. 0: any.",
    )
    public_folders = models.JSONField(
        default=list,
        blank=True,
        validators=[require_public_folders],
        help_text="Of a cluster: kinds whose public models its callers see, LoRAs beside their own, others in place of them. "
        "GFPGAN and extensions are kept for its document.",
    )
    hidden_tabs = models.JSONField(
        default=list, blank=True, validators=[require_tabs], help_text="Tabs that pages over the web API leave out."
    )
    api_log = models.BooleanField("API log", default=False, help_text="Each call is a line of the log.")
    time_log = models.BooleanField(default=False, help_text="Each call is a line of the log, with its seconds.")
    safety_filter = models.BooleanField(
        default=False, help_text="Pictures that are not safe for work are delivered black."
    )
    dynamic_cache = models.BooleanField(
        default=False, help_text="Kept for its document; workers keep what fits them in any case."
    )
    min_ram_reserved_gb = models.FloatField(
        "RAM reserved, GB",
        null=True,
        blank=True,
        validators=[MinValueValidator(0), MaxValueValidator(1_000_000)],
        help_text="Kept for its document; workers look after their memory in any case.",
    )
    document = models.TextField(
        blank=True, editable=False, help_text="The service's description as it was imported, JSON."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    objects = EasServiceQuerySet.as_manager()

    class Meta:
        ordering = ["name"]
        verbose_name = "EAS service"
        constraints = [
            models.CheckConstraint(condition=Q(edition__in=EasEdition.values), name="eas_edition_is_known"),
            models.CheckConstraint(condition=Q(window__gte=1, max_delivery__gte=1), name="eas_service_can_work"),
        ]

    def __str__(self) -> str:
        return self.name

    @transaction.atomic
    def save(self, *args: Any, **kwargs: Any) -> None:
        """What is deployed is logged with whatever changes it."""
        super().save(*args, **kwargs)
        deployment_follow(self)

    @transaction.atomic
    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """Nothing here offers it; who does it all the same, from a shell, ends the bill of its instances too."""
        self.enabled = False
        self.save(update_fields=["enabled"])
        return super().delete(*args, **kwargs)

    def clean(self) -> None:
        """Raises: ValidationError: Values that do not go together."""
        if self.edition == EasEdition.STANDARD and self.replicas != 1:
            raise ValidationError({"replicas": "A service of the Standard edition has one instance."})
        if self.edition in (EasEdition.API, EasEdition.CLUSTER) and not self.mounts:
            edition = EasEdition(self.edition).label
            message = f"Pictures of the {edition} edition are kept by path; name at least one mount path."
            raise ValidationError({"mounts": message})

    @property
    def is_asynchronous(self) -> bool:
        return self.edition == EasEdition.API

    def part_of(self, kind: str) -> str:
        """Which of the models of a kind calls through it see."""
        folder, part = CLUSTER_PARTS.get(AssetKind(kind), (None, Part.ALL))
        if self.edition != EasEdition.CLUSTER or folder is None:
            return Part.ALL
        return part if folder in self.public_folders else Part.OWN


def deployment_follow(service: EasService) -> None:
    """Log what the service's row says now; ``service`` may know less, after a save of some of its fields."""
    row = EasService.objects.only("name", "edition", "enabled", "team", "pool", "replicas").get(pk=service.pk)
    pool_id = row.pool_id or Pool.objects.order_by("-enabled", "pk").values_list("pk", flat=True).first()
    deployment_log(
        service_id=row.pk,
        service=row.name,
        team_id=row.team_id,
        pool_id=pool_id,
        edition=row.edition,
        by_time=row.edition != EasEdition.SERVERLESS,
        replicas=row.replicas if row.enabled else 0,
    )


class EasQueue(models.Model):
    service = models.ForeignKey(EasService, on_delete=models.CASCADE, related_name="queues")
    kind = models.CharField(max_length=8, choices=QueueKind)
    last_index = models.BigIntegerField(default=0, help_text="The highest index ever given out.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["service", "kind"], name="one_eas_queue_of_a_kind")]

    def __str__(self) -> str:
        return f"{self.kind} of {self.service_id}"


class EasFrame(models.Model):
    """A request or a result. An input frame is with the service's workers while ``taken_until`` is set.

    ::

        input: waiting ──(taken)──→ in hand: job after job, at most ``max_delivery`` ──→ its sink frame is written, it is gone
                  ↑______(lost)______│
    """

    queue = models.ForeignKey(EasQueue, on_delete=models.CASCADE, related_name="frames", db_index=False)
    index = models.BigIntegerField()
    priority = models.SmallIntegerField(default=0, help_text="Larger goes first.")
    tags = models.JSONField(default=dict)
    data = models.BinaryField()
    request_id = models.CharField(max_length=200, help_text="Also the tag requestId; joins a request and its result.")
    created_at = models.DateTimeField()
    # Of a request.
    path = models.CharField(max_length=200, blank=True, help_text="The call it asks for, such as /sdapi/v1/txt2img.")
    token = models.ForeignKey(ApiToken, null=True, on_delete=models.SET_NULL, related_name="+")
    taken_until = models.DateTimeField(null=True)
    tries = models.PositiveSmallIntegerField(default=0, help_text="Times it was taken by a worker.")
    deliveries = models.PositiveSmallIntegerField(default=1, help_text="The number of the job it is at.")
    job = models.ForeignKey(
        RenderJob, null=True, on_delete=models.SET_NULL, related_name="eas_frames", help_text="What it waits for."
    )
    # Of a result.
    answer_to = models.BigIntegerField(null=True, help_text="Index of the request; empty for what a client put.")

    class Meta:
        ordering = ["queue", "index"]
        indexes = [
            models.Index(fields=["queue", "-priority", "index"], name="eas_frame_next"),
            models.Index(fields=["queue", "request_id"], name="eas_frame_by_request"),
            models.Index(
                fields=["queue", "taken_until"], condition=Q(taken_until__isnull=False), name="eas_frame_taken"
            ),
        ]
        constraints = [
            models.UniqueConstraint(fields=["queue", "index"], name="one_eas_frame_per_index"),
            models.UniqueConstraint(
                fields=["queue", "answer_to"], condition=Q(answer_to__isnull=False), name="one_eas_answer_per_request"
            ),
            models.CheckConstraint(condition=Q(index__gte=1), name="eas_index_begins_at_one"),
        ]

    def __str__(self) -> str:
        return f"frame {self.index} of queue {self.queue_id}"


class EasConsumer(models.Model):
    """Who watches, or watched not long ago. The newest connection of a (group, uid) is the consumer."""

    queue = models.ForeignKey(EasQueue, on_delete=models.CASCADE, related_name="consumers")
    group = models.CharField(max_length=200)
    uid = models.CharField(max_length=200)
    connection = models.UUIDField()
    window = models.PositiveIntegerField()
    auto_commit = models.BooleanField(default=False)
    index_only = models.BooleanField(default=False)
    start_index = models.BigIntegerField(default=0)
    tags = models.JSONField(default=dict)
    last_index = models.BigIntegerField(default=0)
    seen_at = models.DateTimeField()
    left_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["queue", "pk"]
        constraints = [models.UniqueConstraint(fields=["queue", "group", "uid"], name="one_eas_consumer_per_uid")]

    def __str__(self) -> str:
        return f"{self.group}.{self.uid}"


class EasDelivery(models.Model):
    """What a group has of a frame: sent to a consumer, waiting to be sent again (no consumer), or committed."""

    frame = models.ForeignKey(EasFrame, on_delete=models.CASCADE, related_name="handed_out", db_index=False)
    group = models.CharField(max_length=200)
    consumer = models.ForeignKey(EasConsumer, null=True, on_delete=models.SET_NULL, related_name="handed_out")
    connection = models.UUIDField(null=True, help_text="Through which it was sent.")
    sent = models.PositiveIntegerField(default=0, help_text="Times it was sent to the group.")
    committed = models.BooleanField(default=False)

    class Meta:
        ordering = ["frame", "group"]
        constraints = [
            models.UniqueConstraint(fields=["frame", "group"], name="one_eas_delivery_per_group"),
            models.CheckConstraint(
                condition=Q(consumer__isnull=True) | Q(committed=False), name="a_committed_eas_frame_is_with_nobody"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.frame_id} for {self.group}"
