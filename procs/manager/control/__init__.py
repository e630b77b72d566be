"""What operators' tools and the Docker daemon call on a manager (reference manager §5)."""

from procs.manager.control.service import ControlService

__all__ = ["ControlService"]
