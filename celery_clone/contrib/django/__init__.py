"""For Django projects: tasks that wait for the transaction."""
