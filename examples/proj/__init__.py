"""The project of the Next Steps guide."""
