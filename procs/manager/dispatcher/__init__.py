"""The dispatcher: sessions with agents, their assignments and their reports (reference agent-and-dispatcher §5)."""
