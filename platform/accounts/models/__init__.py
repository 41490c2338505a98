from accounts.models.recovery import RecoveryCode
from accounts.models.teams import READING_ROLES, Membership, Project, Role, Team, User
from accounts.models.tokens import ApiToken, Scope

__all__ = ["READING_ROLES", "ApiToken", "Membership", "Project", "RecoveryCode", "Role", "Scope", "Team", "User"]
