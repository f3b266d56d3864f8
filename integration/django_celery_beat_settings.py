"""As much of Django's settings as django-celery-beat asks for."""

from __future__ import annotations

import os

from integration.celery_programs import FOLDER

SECRET_KEY = "none"
USE_TZ = True
INSTALLED_APPS = ["django_celery_beat"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.path.join(os.environ.get(FOLDER, "."), "beat.sqlite3"),
    }
}
