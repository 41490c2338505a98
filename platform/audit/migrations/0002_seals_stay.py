"""The database refuses to change or remove a seal."""

from django.db import migrations

from common.database import append_only


class Migration(migrations.Migration):
    dependencies = [("audit", "0001_initial")]
    operations = [append_only("audit_seal")]
