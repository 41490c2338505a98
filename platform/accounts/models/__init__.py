from accounts.models.teams import Membership, Project, Role, Team, User
from accounts.models.tokens import ApiToken, Scope

__all__ = ["ApiToken", "Membership", "Project", "Role", "Scope", "Team", "User"]
