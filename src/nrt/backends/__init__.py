"""Engines on clusters."""
