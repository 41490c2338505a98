"""What happens to accounts without a row of theirs that the audit log watches. That log listens; this app knows nothing of it."""

from __future__ import annotations

from django.dispatch import Signal

account_event = Signal()
"""``user``: whose account; ``did``: what happened, in the audit log's words."""
