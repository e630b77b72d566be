"""Chooses a node for each pending task (reference manager §7)."""
