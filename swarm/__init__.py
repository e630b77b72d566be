"""What several processes share, with no process of its own."""

VERSION = "0.1.0"
"""The release, as in pyproject.toml (a test compares them): asking the installation's metadata takes 20 ms, which each
start of the agent would wait for."""
