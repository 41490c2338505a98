"""Files among a team's files that no job made, and the runs that take a whole data directory in."""

from __future__ import annotations

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from accounts.models import Team, User


class FileState(models.TextChoices):
    ARRIVING = "arriving"
    STORED = "stored"
    LEAVING = "leaving"


class FileOrigin(models.TextChoices):
    UPLOADED = "uploaded"
    IMPORTED = "imported"


class TeamFileQuerySet(models.QuerySet["TeamFile"]):
    def visible_to(self, user: User) -> TeamFileQuerySet:
        """Files of the user's teams and of the public area; a superuser sees all."""
        own = Q(team__in=user.memberships.values("team")) | Q(team=None)
        return self if user.is_superuser else self.filter(own)


class TeamFile(models.Model):
    """A file that was uploaded, or brought along from an earlier installation.

    ::

        arriving ──object written──→ stored ──→ leaving ──object removed──→ (no row)
            └──── nobody went on for an hour ──────┘

    The row comes before its object and goes after it, so that what a killed process left can be told and tidied.
    """

    team = models.ForeignKey(
        Team,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="files",
        help_text="Empty: the public area, which everybody reads.",
    )
    path = models.CharField(max_length=500, help_text="Its own name, or where it lay in the directory it came from.")
    file_key = models.CharField(max_length=300, unique=True)
    sha256 = models.CharField(max_length=64)
    size_bytes = models.BigIntegerField()
    width = models.PositiveIntegerField(null=True, blank=True, help_text="Of a picture.")
    height = models.PositiveIntegerField(null=True, blank=True)
    infotext = models.TextField(blank=True)
    origin = models.CharField(max_length=8, choices=FileOrigin, default=FileOrigin.IMPORTED)
    uploaded_by = models.ForeignKey(User, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    made_at = models.DateTimeField(help_text="The file's time.")
    created_at = models.DateTimeField()
    state = models.CharField(max_length=8, choices=FileState, default=FileState.STORED)
    state_at = models.DateTimeField(db_default=Now(), help_text="When it came into this state.")

    objects = TeamFileQuerySet.as_manager()

    class Meta:
        ordering = ["team", "path"]
        indexes = [
            models.Index(fields=["state_at"], condition=~Q(state="stored"), name="file_on_its_way"),
        ]

    def __str__(self) -> str:
        return self.path


class ImportState(models.TextChoices):
    WAITING = "waiting"
    RUNNING = "running"
    STOPPED = "stopped"
    ENDED = "ended"
    FAILED = "failed"


class DirectoryImport(models.Model):
    """A data directory of the server that is taken in, in the background.

    ::

        waiting ⇄ running ──→ ended | failed (the directory cannot be read)
           └─────────┴──→ stopped ──→ waiting

    Whoever runs it holds a number that grows with each taking over; a worker that comes back late writes nothing.
    """

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="+")
    directory = models.CharField(max_length=500, help_text="On the server, below a folder of IMPORT_DIRS.")
    folder = models.CharField(max_length=40, default="data", help_text="Of the team's files, for the pictures.")
    public = models.BooleanField(default=False, help_text="Its models are for everybody, not for the team only.")
    started_by = models.ForeignKey(User, null=True, on_delete=models.SET_NULL, related_name="+")
    state = models.CharField(max_length=8, choices=ImportState, default=ImportState.WAITING)
    reason = models.TextField(blank=True)
    fence = models.PositiveIntegerField(default=0, help_text="Grows with each worker that takes it over.")
    position = models.TextField(blank=True, help_text="The last file that was dealt with.")
    files_total = models.PositiveIntegerField(default=0)
    files_done = models.PositiveIntegerField(default=0)
    files_known = models.PositiveIntegerField(default=0, help_text="Of those done: were here already.")
    files_left = models.PositiveIntegerField(default=0)
    files_passed_over = models.PositiveIntegerField(default=0, help_text="Neither models nor pictures.")
    bytes_total = models.BigIntegerField(default=0)
    bytes_done = models.BigIntegerField(default=0)
    bytes_before = models.BigIntegerField(default=0, help_text="Done when the present worker began, for its speed.")
    created_at = models.DateTimeField()
    began_at = models.DateTimeField(null=True, help_text="When the present worker began.")
    touched_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.directory} for {self.team}"


class ImportedNot(models.Model):
    """A file that an import left where it is, and why."""

    run = models.ForeignKey(DirectoryImport, on_delete=models.CASCADE, related_name="left")
    path = models.CharField(max_length=500)
    what = models.CharField(max_length=16)
    why = models.CharField(max_length=500)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"
