"""What the tests' tasks work on."""

from __future__ import annotations

import uuid

from django.db import models


class Note(models.Model):
    """Written by tasks, so that a test sees what ran."""

    text = models.CharField(max_length=200)

    def __str__(self) -> str:
        return self.text


class Tagged(models.Model):
    """Its primary key is not a number."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    tag = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.tag
