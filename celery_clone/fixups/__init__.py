"""Adaptations to frameworks, each applied by itself where the framework is in use."""
