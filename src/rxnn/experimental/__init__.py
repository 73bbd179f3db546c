"""The models of the card."""
