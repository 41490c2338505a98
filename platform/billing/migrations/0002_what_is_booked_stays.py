"""The database itself keeps the book: what was booked, settled or published is neither changed, nor removed, nor replaced.

A migration that alters one of these tables must come with the steps anew: SQLite makes an altered table again, without its triggers.
"""

from django.db import migrations

from common.database import append_only, frozen_when, never_replaced


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial")]
    operations = [
        append_only("billing_ledgertransaction"),
        append_only("billing_ledgerline"),
        append_only("billing_deploymentday"),
        frozen_when("billing_deploymentspan", "{row}.ended_at IS NOT NULL"),
        frozen_when("billing_ratecard", "{row}.published_at IS NOT NULL"),
        frozen_when(
            "billing_rateprice",
            "EXISTS (SELECT 1 FROM billing_ratecard WHERE id = {row}.card_id AND published_at IS NOT NULL)",
            inserts=True,
        ),
        never_replaced("billing_ledgertransaction", ["event_id"]),
        never_replaced("billing_ledgerline", ["transaction_id", "account"]),
        never_replaced("billing_ratecard", ["name"], ["valid_from"]),
        never_replaced("billing_rateprice"),
        never_replaced("billing_deploymentday", ["service_id", "day"]),
        never_replaced("billing_deploymentspan", ["service_id", "started_at"]),
    ]
