"""People and what they belong to. A team owns jobs, models and money; a project is a part of a team."""

from __future__ import annotations

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.utils.crypto import salted_hmac


class User(AbstractUser):
    is_service_account = models.BooleanField(default=False, help_text="A program, not a person; it cannot sign in.")
    is_finance = models.BooleanField(
        "finance", default=False, help_text="Reads the money of all teams, and writes nothing."
    )
    session_epoch = models.PositiveIntegerField(
        default=0, editable=False, help_text="Grows when all sessions of the user end."
    )

    def _get_session_auth_hash(self, secret: str | None = None) -> str:
        """A session lives while this is what it was at sign-in: password, rights, and no end since (``accounts/sessions.py``)."""
        rights = (self.is_staff, self.is_superuser, self.is_finance)
        value = repr((self.password, self.session_epoch, *map(bool, rights)))
        return salted_hmac("accounts.User.session", value, secret=secret, algorithm="sha256").hexdigest()

    def role_in(self, team: Team) -> str | None:
        membership = self.memberships.filter(team=team).first()
        return membership.role if membership else None


class Team(models.Model):
    name = models.SlugField(max_length=64, unique=True)
    title = models.CharField(max_length=120, blank=True)
    members: models.ManyToManyField = models.ManyToManyField(User, through="Membership", related_name="teams")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.title or self.name


class Role(models.TextChoices):
    LEAD = "lead"
    MEMBER = "member"
    VIEWER = "viewer"
    FINANCE = "finance"


READING_ROLES = (Role.VIEWER, Role.FINANCE)
"""Who only reads: a team's work, or its money."""


class Membership(models.Model):
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role, default=Role.MEMBER)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["team", "user"], name="one_membership_per_team_and_user")]

    def __str__(self) -> str:
        return f"{self.user} in {self.team} as {self.role}"


class Project(models.Model):
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="projects")
    name = models.SlugField(max_length=64)
    title = models.CharField(max_length=120, blank=True)

    class Meta:
        ordering = ["team__name", "name"]
        constraints = [models.UniqueConstraint(fields=["team", "name"], name="one_project_name_per_team")]

    def __str__(self) -> str:
        return f"{self.team.name}/{self.name}"
