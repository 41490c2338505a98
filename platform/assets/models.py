"""Loadable files. An approved asset is immutable: a new upload under its name is a new row, and queued jobs keep the old one.

::

    received ──→ hashed ──→ scanned ──→ recognised ──→ approved ──→ retired
        └───────────┴──────────┴────────────┴──→ quarantined (with the reason; its file is removed)
"""

from __future__ import annotations

import uuid

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from accounts.models import Team, User
from assets.cards import FIELDS, LIMITS, MAX_WEIGHT, Card, is_address
from assets.zoo_models import ZooImport, ZooState  # noqa: F401  Django looks for tables here
from fleet.models import Pool
from gpuworker.contract import Weights


class AssetKind(models.TextChoices):
    CHECKPOINT = "checkpoint"
    VAE = "vae"
    LORA = "lora"
    EMBEDDING = "embedding"
    HYPERNETWORK = "hypernetwork"
    CONTROLNET = "controlnet"
    UPSCALER = "upscaler"
    TEXT_GENERATOR = "text_generator"
    SAFETY_FILTER = "safety_filter"


class AssetState(models.TextChoices):
    RECEIVED = "received"
    HASHED = "hashed"
    SCANNED = "scanned"
    RECOGNISED = "recognised"
    APPROVED = "approved"
    QUARANTINED = "quarantined"
    RETIRED = "retired"


class Access(models.TextChoices):
    PUBLIC = "public"
    TEAMS = "teams"
    USERS = "users"


class Part(models.TextChoices):
    """Of what somebody may name: the side that calls through a service may be limited to."""

    ALL = "all"
    PUBLIC = "public"
    OWN = "own"


class AssetQuerySet(models.QuerySet["Asset"]):
    def visible_to(self, *, user: User, team: Team) -> AssetQuerySet:
        """Approved assets this user may name while acting for this team."""
        allowed = Q(access=Access.PUBLIC) | Q(access=Access.TEAMS, teams=team) | Q(access=Access.USERS, users=user)
        return self.filter(allowed, state=AssetState.APPROVED).distinct()

    def in_part(self, part: str) -> AssetQuerySet:
        """Of visible ones: ``OWN`` is what was given to the user or the team."""
        if part == Part.ALL:
            return self
        return self.filter(access=Access.PUBLIC) if part == Part.PUBLIC else self.exclude(access=Access.PUBLIC)


class Asset(models.Model):
    kind = models.CharField(max_length=16, choices=AssetKind)
    name = models.CharField(max_length=200, help_text="The file's stem; what clients call it.")
    file_key = models.CharField(max_length=300, blank=True, help_text="Key in the asset storage.")
    config_key = models.CharField(
        max_length=300, blank=True, help_text="Key of the neighbouring YAML, if one came along."
    )
    size_bytes = models.BigIntegerField(default=0)
    sha256 = models.CharField(max_length=64, blank=True, help_text="Of the stored file, which workers verify.")
    original_sha256 = models.CharField(
        max_length=64, blank=True, help_text="Of the uploaded file, where it was converted to the stored one."
    )
    short_hash = models.CharField(
        max_length=10, blank=True, help_text="A1111's: the first ten digits of the uploaded file's sha-256."
    )
    listed_hash = models.CharField(
        max_length=12,
        blank=True,
        help_text="What infotexts show of a LoRA, an embedding (12 digits) or a ControlNet (8).",
    )
    alias = models.CharField(max_length=200, blank=True, help_text="The name a LoRA was trained under.")
    metadata = models.JSONField(default=dict, blank=True, help_text="A LoRA's own, as lists of LoRAs show them.")
    embeddings_inside = models.JSONField(
        default=dict, blank=True, help_text="Embeddings inside a LoRA file: name to number of text encoders."
    )
    family = models.CharField(max_length=32, blank=True)
    state = models.CharField(max_length=16, choices=AssetState, default=AssetState.RECEIVED)
    reason = models.TextField(blank=True, help_text="Why it is quarantined.")
    is_default = models.BooleanField(default=False, help_text="The checkpoint of requests that name none.")
    access = models.CharField(max_length=8, choices=Access, default=Access.PUBLIC)
    teams: models.ManyToManyField = models.ManyToManyField(Team, blank=True, related_name="assets")
    users: models.ManyToManyField = models.ManyToManyField(User, blank=True, related_name="assets")
    pools: models.ManyToManyField = models.ManyToManyField(
        Pool, blank=True, related_name="+", help_text="Where it may run; none: anywhere."
    )
    uploaded_by = models.ForeignKey(User, null=True, blank=True, on_delete=models.SET_NULL, related_name="uploads")
    created_at = models.DateTimeField(auto_now_add=True)
    approved_at = models.DateTimeField(null=True, blank=True)
    # The card: what people say about the file. It changes no picture and may be written at any time (``cards``).
    description = models.TextField(blank=True, max_length=LIMITS["description"])
    trigger_words = models.TextField(
        blank=True, max_length=LIMITS["trigger_words"], help_text="What the prompt has to say, separated by commas."
    )
    preferred_weight = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(-MAX_WEIGHT), MaxValueValidator(MAX_WEIGHT)],
        help_text="Of a network in a prompt.",
    )
    licence = models.CharField(blank=True, max_length=LIMITS["licence"])
    source_page = models.CharField(
        blank=True, max_length=LIMITS["source_page"], validators=[is_address], help_text="Where it was published."
    )
    base_model = models.CharField(
        blank=True, max_length=LIMITS["base_model"], help_text="For which models it is, in its author's words."
    )
    notes = models.TextField(blank=True, max_length=LIMITS["notes"])
    preview_key = models.CharField(max_length=300, blank=True, help_text="Key of its picture in the asset storage.")

    objects = AssetQuerySet.as_manager()

    class Meta:
        ordering = ["kind", "name", "-created_at"]
        indexes = [models.Index(fields=["kind", "state", "name"], name="asset_by_name")]
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "name", "sha256"],
                condition=Q(state__in=["approved", "retired"]),
                name="one_approved_asset_per_name_and_hash",
            ),
            models.UniqueConstraint(fields=["kind"], condition=Q(is_default=True), name="one_default_asset_per_kind"),
        ]

    def __str__(self) -> str:
        return self.title

    @property
    def card(self) -> Card:
        return Card(**{name: getattr(self, name) for name in FIELDS})

    @property
    def filename(self) -> str:
        return f"{self.name}.safetensors"

    @property
    def weights(self) -> Weights:
        """As a recipe names it."""
        shown = self.short_hash if self.original_sha256 else ""
        channels = self.metadata.get("input_channels", 4) if self.kind == AssetKind.CHECKPOINT else 4
        return Weights(name=self.name, sha256=self.sha256, shown_hash=shown, input_channels=channels)

    @property
    def title(self) -> str:
        """As A1111 shows it: file name and short hash."""
        return f"{self.filename} [{self.short_hash}]" if self.short_hash else self.filename


class Upload(models.Model):
    """A file that arrives in parts. The row lives until the parts have become the asset's draft; the asset waits as received."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    asset = models.OneToOneField(Asset, on_delete=models.CASCADE, related_name="upload")
    size_bytes = models.BigIntegerField(help_text="Of the whole file, as announced.")
    received_bytes = models.BigIntegerField(default=0)
    sha256 = models.CharField(max_length=64, blank=True, help_text="Of the whole file, if it was announced.")
    config = models.TextField(blank=True, help_text="The neighbouring YAML, if one came along.")
    touched_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.asset.name}: {self.received_bytes} of {self.size_bytes} bytes"

    @property
    def is_complete(self) -> bool:
        return self.received_bytes == self.size_bytes


class UploadPart(models.Model):
    """Parts follow one another without a gap: each begins where those before it end."""

    upload = models.ForeignKey(Upload, on_delete=models.CASCADE, related_name="parts")
    offset = models.BigIntegerField()
    size_bytes = models.IntegerField()
    key = models.CharField(max_length=300)

    class Meta:
        ordering = ["offset"]
        constraints = [models.UniqueConstraint(fields=["upload", "offset"], name="one_part_per_offset")]

    def __str__(self) -> str:
        return f"{self.upload_id} from {self.offset}"


class Wildcard(models.Model):
    """Lines of which a prompt that names the file takes one: ``__name__``."""

    team = models.ForeignKey(
        Team, null=True, blank=True, on_delete=models.CASCADE, related_name="+", help_text="Empty: for all teams."
    )
    name = models.CharField(max_length=200)
    text = models.TextField(help_text="One line each, without empty ones and comments.")

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["team", "name"], name="one_wildcard_per_team_and_name"),
            models.UniqueConstraint(fields=["name"], condition=Q(team=None), name="one_public_wildcard_per_name"),
        ]

    def __str__(self) -> str:
        return self.name


class PromptStyle(models.Model):
    """A text that is put around or behind prompts: a row of A1111's ``styles.csv``."""

    team = models.ForeignKey(
        Team, null=True, blank=True, on_delete=models.CASCADE, related_name="+", help_text="Empty: for all teams."
    )
    name = models.CharField(max_length=200)
    prompt = models.TextField(blank=True)
    negative_prompt = models.TextField(blank=True)

    class Meta:
        ordering = ["name"]
        constraints = [
            models.UniqueConstraint(fields=["team", "name"], name="one_style_per_team_and_name"),
            models.UniqueConstraint(fields=["name"], condition=Q(team=None), name="one_public_style_per_name"),
        ]

    def __str__(self) -> str:
        return self.name
