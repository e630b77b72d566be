"""The manager's store: objects in memory with indexes, written through an engine (DESIGN §6)."""

from procs.manager.store import by
from procs.manager.store.store import Store
from procs.manager.store.transaction import Tx
from procs.manager.store.watch import Action, Commit, Event, Watch

__all__ = ["Action", "Commit", "Event", "Store", "Tx", "Watch", "by"]
