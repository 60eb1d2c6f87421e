"""Probabilities that can be trusted, and decisions that are fitted on development data."""
