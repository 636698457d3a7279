"""Comparison with real Celery 5.7.0, end to end: ``make bench``."""
