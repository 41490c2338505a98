"""Whose changes the audit log keeps. Secrets, and what the platform itself counts in a row, are left out."""

from __future__ import annotations

AUDITLOG_INCLUDE_TRACKING_MODELS = (
    {"model": "accounts.User", "exclude_fields": ["password", "last_login", "session_epoch"]},
    "accounts.Team",
    "accounts.Membership",
    "accounts.Project",
    {"model": "accounts.ApiToken", "exclude_fields": ["digest", "last_used_at"]},
    {"model": "assets.Asset", "m2m_fields": ["teams", "users", "pools"]},
    "fleet.Pool",
    "billing.RateCard",
    "billing.RatePrice",
    "billing.Budget",
    "billing.BudgetThreshold",
    "billing.Quota",
    "billing.BillingProfile",
    "renderjobs.BatchTemplate",
    "renderjobs.TemplateVersion",
    {"model": "renderjobs.BatchSchedule", "exclude_fields": ["periodic_task", "handled_until"]},
    "renderjobs.JobApproval",
    {"model": "renderjobs.ImageReview", "exclude_fields": ["changed_at"]},
    "renderjobs.EasService",
    "renderjobs.SafetyPolicy",
)
