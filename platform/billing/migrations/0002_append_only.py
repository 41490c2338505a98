from django.db import migrations

from common.database import append_only


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial")]
    operations = [append_only("billing_ledgertransaction"), append_only("billing_ledgerline")]
