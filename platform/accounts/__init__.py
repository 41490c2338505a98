"""Who: users, teams, projects, tokens. Imports only ``common``."""
