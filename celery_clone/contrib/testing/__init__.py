"""Apps, workers, messages and waiting, for the tests of projects that use tasks."""
