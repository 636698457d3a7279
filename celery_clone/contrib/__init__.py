"""What users import next to the app: testing, debugging, moving messages, documentation of tasks."""
