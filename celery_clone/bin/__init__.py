"""The commands of the ``celery`` program, one module each; ``bin.celery`` knows them by name."""
