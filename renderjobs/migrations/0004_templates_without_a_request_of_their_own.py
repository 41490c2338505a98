from django.db import migrations


class Migration(migrations.Migration):
    """After the copy in the migration before: PostgreSQL does not alter a table whose rows it is still checking."""

    dependencies = [
        ("renderjobs", "0003_template_versions_and_scheduled_runs"),
    ]

    operations = [
        migrations.RemoveField(
            model_name="batchtemplate",
            name="created_by",
        ),
        migrations.RemoveField(
            model_name="batchtemplate",
            name="kind",
        ),
        migrations.RemoveField(
            model_name="batchtemplate",
            name="request",
        ),
        migrations.RemoveField(
            model_name="batchschedule",
            name="last_error",
        ),
    ]
