from __future__ import annotations

from django.db import migrations, models
from django.db.models.functions import Now


class Migration(migrations.Migration):
    dependencies = [("asynctasq_django", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="OutboxEntry",
            fields=[
                ("id", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("driver", models.CharField(max_length=32)),
                ("messages", models.BinaryField()),
                ("created_at", models.DateTimeField(db_default=Now(), db_index=True)),
            ],
            options={"db_table": "asynctasq_outbox", "default_permissions": ()},
        )
    ]
