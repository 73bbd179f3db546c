"""The published models."""
