"""Gives new tasks what they need before they may be scheduled (reference manager §8)."""
