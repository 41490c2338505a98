from billing.models.budgets import (
    Budget,
    BudgetNotice,
    BudgetPeriod,
    BudgetScope,
    BudgetSpan,
    BudgetThreshold,
    ThresholdAction,
)
from billing.models.deployments import DeploymentDay, DeploymentSpan
from billing.models.holds import BillingProfile, Hold
from billing.models.ledger import UNALLOCATED, Account, LedgerLine, LedgerTransaction, TransactionKind
from billing.models.mails import OutgoingMail
from billing.models.quotas import Measure, Quota, RequestCount, StoredBytes
from billing.models.ratecards import Placement, RateCard, RatePrice
from billing.models.usage import UsageRecord

__all__ = [
    "UNALLOCATED",
    "Account",
    "BillingProfile",
    "Budget",
    "BudgetNotice",
    "BudgetPeriod",
    "BudgetScope",
    "BudgetSpan",
    "BudgetThreshold",
    "DeploymentDay",
    "DeploymentSpan",
    "Hold",
    "LedgerLine",
    "LedgerTransaction",
    "Measure",
    "OutgoingMail",
    "Placement",
    "Quota",
    "RateCard",
    "RatePrice",
    "RequestCount",
    "StoredBytes",
    "ThresholdAction",
    "TransactionKind",
    "UsageRecord",
]
