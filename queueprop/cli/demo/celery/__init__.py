"""The demo on Celery."""
