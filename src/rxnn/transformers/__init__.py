"""Text from models."""
