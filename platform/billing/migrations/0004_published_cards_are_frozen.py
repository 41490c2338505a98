from django.db import migrations
from django.db.models import F

from common.database import frozen_when


def publish_what_was_in_force(apps, schema_editor):
    """Until now every card came into force by being saved."""
    apps.get_model("billing", "RateCard").objects.filter(published_at=None).update(published_at=F("created_at"))


class Migration(migrations.Migration):
    dependencies = [("billing", "0003_budgets_holds_quotas_and_drafts")]
    operations = [
        migrations.RunPython(publish_what_was_in_force, migrations.RunPython.noop),
        frozen_when("billing_ratecard", "{row}.published_at IS NOT NULL"),
        frozen_when(
            "billing_rateprice",
            "EXISTS (SELECT 1 FROM billing_ratecard WHERE id = {row}.card_id AND published_at IS NOT NULL)",
            inserts=True,
        ),
    ]
