from billing.models.ledger import Account, LedgerLine, LedgerTransaction, TransactionKind
from billing.models.ratecards import RateCard, RatePrice
from billing.models.usage import UsageRecord

__all__ = ["Account", "LedgerLine", "LedgerTransaction", "RateCard", "RatePrice", "TransactionKind", "UsageRecord"]
