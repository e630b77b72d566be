"""The two transition tables. Complete: a pair that is not in its table is a mistake and raises.

Events are states told again (DESIGN §3), so a happening may repeat, and two of them may arrive in either order; tests
drive every row, and every pair in both orders. `document.py` prints the tables into `docs/coordinator.md`.
Sources: reference node-and-ca §1.8 (supervision of the manager), §1.5 (node changes); DESIGN §4.
"""

from __future__ import annotations

from typing import NamedTuple

from procs.coordinator.states import Action, Happening, Replacement, Supervision, Wish

ROLE_CHANGE_SECONDS = 16.0
"""How long a role change may take before the next step is taken without it (reference node-and-ca §0.1)."""


class Step(NamedTuple):
    """A row's right side. The state always; what to do; why, in words a log shows."""

    state: str
    actions: tuple[Action, ...] = ()
    why: str = ""


_S, _H, _A = Supervision, Happening, Action

SUPERVISION: dict[tuple[Supervision, Happening], Step] = {
    # Before both the role and the program are known nothing happens; the role is told first, then the program.
    (_S.BOOTING, _H.ROLE_MANAGER): Step(_S.DECIDING),
    (_S.BOOTING, _H.ROLE_WORKER): Step(_S.PARKED),
    (_S.BOOTING, _H.UP): Step(_S.BOOTING),
    (_S.BOOTING, _H.STOPPED): Step(_S.BOOTING),
    (_S.BOOTING, _H.ENDED): Step(_S.BOOTING),
    (_S.BOOTING, _H.REMOVED): Step(_S.BOOTING),
    (_S.BOOTING, _H.WANTED): Step(_S.BOOTING),
    (_S.BOOTING, _H.TIMEOUT): Step(_S.BOOTING),
    # This coordinator just started, perhaps in the middle of things: the manager's last words say in which.
    (_S.DECIDING, _H.ROLE_MANAGER): Step(_S.DECIDING),
    (_S.DECIDING, _H.ROLE_WORKER): Step(_S.PARKED),
    (_S.DECIDING, _H.UP): Step(_S.RUNNING, (), "the manager runs already"),
    (_S.DECIDING, _H.STOPPED): Step(_S.RUNNING, (_A.START,), "the certificate is a manager's, or will be"),
    (_S.DECIDING, _H.ENDED): Step(_S.ENDED, (_A.WAIT,), "the manager had ended; the role may be about to change"),
    (_S.DECIDING, _H.REMOVED): Step(_S.REMOVED, (_A.WAIT,), "the manager had been removed; the role should change"),
    (_S.DECIDING, _H.WANTED): Step(_S.DECIDING),
    (_S.DECIDING, _H.TIMEOUT): Step(_S.DECIDING),
    (_S.PARKED, _H.ROLE_MANAGER): Step(_S.RUNNING, (_A.START,), "the certificate is a manager's now"),
    (_S.PARKED, _H.ROLE_WORKER): Step(_S.PARKED),
    (_S.PARKED, _H.UP): Step(_S.WITHDRAWN, (_A.STOP,), "a worker runs no manager"),
    (_S.PARKED, _H.STOPPED): Step(_S.PARKED),
    (_S.PARKED, _H.ENDED): Step(_S.PARKED),
    (_S.PARKED, _H.REMOVED): Step(_S.PARKED),
    (_S.PARKED, _H.WANTED): Step(_S.PARKED),
    (_S.PARKED, _H.TIMEOUT): Step(_S.PARKED),
    # Crashes are supervisord's: it restarts at once, here they are still UP.
    (_S.RUNNING, _H.ROLE_MANAGER): Step(_S.RUNNING),
    (_S.RUNNING, _H.ROLE_WORKER): Step(_S.WITHDRAWN, (_A.STOP,), "the certificate is a worker's now"),
    (_S.RUNNING, _H.UP): Step(_S.RUNNING),
    (_S.RUNNING, _H.STOPPED): Step(_S.HELD, (), "an operator stopped the manager"),
    (_S.RUNNING, _H.ENDED): Step(_S.ENDED, (_A.WAIT,), "the manager ended; the role may be about to change"),
    (_S.RUNNING, _H.REMOVED): Step(_S.REMOVED, (_A.WAIT,), "removed from the managers; the role should change"),
    (_S.RUNNING, _H.WANTED): Step(_S.RUNNING),
    (_S.RUNNING, _H.TIMEOUT): Step(_S.RUNNING),
    (_S.HELD, _H.ROLE_MANAGER): Step(_S.HELD),
    (_S.HELD, _H.ROLE_WORKER): Step(_S.PARKED, (), "the certificate is a worker's now"),
    (_S.HELD, _H.UP): Step(_S.RUNNING, (), "the manager was started again"),
    (_S.HELD, _H.STOPPED): Step(_S.HELD),
    (_S.HELD, _H.ENDED): Step(_S.ENDED, (_A.WAIT,), "the manager ended; the role may be about to change"),
    (_S.HELD, _H.REMOVED): Step(_S.REMOVED, (_A.WAIT,), "removed from the managers; the role should change"),
    (_S.HELD, _H.WANTED): Step(_S.HELD),
    (_S.HELD, _H.TIMEOUT): Step(_S.HELD),
    (_S.ENDED, _H.ROLE_MANAGER): Step(_S.ENDED),
    (_S.ENDED, _H.ROLE_WORKER): Step(_S.PARKED, (), "the certificate is a worker's now"),
    (_S.ENDED, _H.UP): Step(_S.RUNNING, (), "the manager was started again"),
    (_S.ENDED, _H.STOPPED): Step(_S.HELD, (), "an operator stopped the manager"),
    (_S.ENDED, _H.ENDED): Step(_S.ENDED),
    (_S.ENDED, _H.REMOVED): Step(_S.REMOVED, (_A.WAIT,), "removed from the managers; the role should change"),
    (_S.ENDED, _H.WANTED): Step(_S.ENDED),
    (_S.ENDED, _H.TIMEOUT): Step(_S.RUNNING, (_A.START,), "no worker role after the manager stopped: restarting it"),
    (_S.REMOVED, _H.ROLE_MANAGER): Step(_S.REMOVED),
    (_S.REMOVED, _H.ROLE_WORKER): Step(_S.PARKED, (), "the certificate is a worker's now"),
    (_S.REMOVED, _H.UP): Step(_S.RUNNING, (), "the manager was started again"),
    (_S.REMOVED, _H.STOPPED): Step(_S.HELD, (), "an operator stopped the manager"),
    (_S.REMOVED, _H.ENDED): Step(_S.REMOVED),
    (_S.REMOVED, _H.REMOVED): Step(_S.REMOVED),
    (_S.REMOVED, _H.WANTED): Step(_S.RUNNING, (_A.START,), "promoted again: it may join the managers anew"),
    (_S.REMOVED, _H.TIMEOUT): Step(_S.FORCED, (_A.RENEW, _A.WAIT), "no worker role after the removal: renewing"),
    (_S.FORCED, _H.ROLE_MANAGER): Step(_S.FORCED),
    (_S.FORCED, _H.ROLE_WORKER): Step(_S.PARKED, (), "the certificate is a worker's now"),
    (_S.FORCED, _H.UP): Step(_S.RUNNING, (), "the manager was started again"),
    (_S.FORCED, _H.STOPPED): Step(_S.HELD, (), "an operator stopped the manager"),
    (_S.FORCED, _H.ENDED): Step(_S.FORCED),
    (_S.FORCED, _H.REMOVED): Step(_S.FORCED),
    (_S.FORCED, _H.WANTED): Step(_S.RUNNING, (_A.START,), "promoted again: it may join the managers anew"),
    (_S.FORCED, _H.TIMEOUT): Step(_S.RUNNING, (_A.START,), "still a manager's certificate: assuming a promotion"),
    (_S.WITHDRAWN, _H.ROLE_MANAGER): Step(_S.RETURNING, (), "a manager again before the old one has ended"),
    (_S.WITHDRAWN, _H.ROLE_WORKER): Step(_S.WITHDRAWN),
    (_S.WITHDRAWN, _H.UP): Step(_S.WITHDRAWN),
    (_S.WITHDRAWN, _H.STOPPED): Step(_S.PARKED, (), "the manager has stopped"),
    (_S.WITHDRAWN, _H.ENDED): Step(_S.PARKED, (), "the manager has ended"),
    (_S.WITHDRAWN, _H.REMOVED): Step(_S.PARKED, (), "the manager has ended"),
    (_S.WITHDRAWN, _H.WANTED): Step(_S.WITHDRAWN),
    (_S.WITHDRAWN, _H.TIMEOUT): Step(_S.WITHDRAWN),
    (_S.RETURNING, _H.ROLE_MANAGER): Step(_S.RETURNING),
    (_S.RETURNING, _H.ROLE_WORKER): Step(_S.WITHDRAWN, (), "a worker after all"),
    (_S.RETURNING, _H.UP): Step(_S.RETURNING),
    (_S.RETURNING, _H.STOPPED): Step(_S.RUNNING, (_A.START,), "the certificate is a manager's again"),
    (_S.RETURNING, _H.ENDED): Step(_S.RUNNING, (_A.START,), "the certificate is a manager's again"),
    (_S.RETURNING, _H.REMOVED): Step(_S.RUNNING, (_A.START,), "the certificate is a manager's again"),
    (_S.RETURNING, _H.WANTED): Step(_S.RETURNING),
    (_S.RETURNING, _H.TIMEOUT): Step(_S.RETURNING),
}

_R, _W = Replacement, Wish

REPLACEMENT: dict[tuple[Replacement, Wish], Step] = {
    (_R.AGREED, _W.AGREE): Step(_R.AGREED),
    (_R.AGREED, _W.UNCONFIRMED): Step(_R.EXPECTING, (_A.WAIT,), "another role is desired; waiting for the managers"),
    (_R.AGREED, _W.CONFIRMED): Step(_R.ASKING, (_A.RENEW,), "the swarm wants another role"),
    (_R.AGREED, _W.ROTATE): Step(_R.ROTATING, (_A.RENEW,), "the swarm's root rotates"),
    (_R.AGREED, _W.TIMEOUT): Step(_R.AGREED),
    (_R.EXPECTING, _W.AGREE): Step(_R.AGREED, (), "the roles agree again"),
    (_R.EXPECTING, _W.UNCONFIRMED): Step(_R.EXPECTING),
    (_R.EXPECTING, _W.CONFIRMED): Step(_R.ASKING, (_A.RENEW,), "the managers confirmed the role"),
    (_R.EXPECTING, _W.ROTATE): Step(_R.ROTATING, (_A.RENEW,), "the swarm's root rotates"),
    # An old CA reports no observed role: ask without it.
    (_R.EXPECTING, _W.TIMEOUT): Step(_R.ASKING, (_A.RENEW,), "no observed role after 16 s"),
    (_R.ASKING, _W.AGREE): Step(_R.AGREED, (), "the certificate has the desired role"),
    # Another certificate or another wish than the one asked for, so another confirmation is waited for.
    (_R.ASKING, _W.UNCONFIRMED): Step(_R.EXPECTING, (_A.WAIT,), "another role is desired; waiting for the managers"),
    (_R.ASKING, _W.CONFIRMED): Step(_R.ASKING),
    (_R.ASKING, _W.ROTATE): Step(_R.ROTATING, (_A.RENEW,), "the role is settled, and the swarm's root rotates"),
    (_R.ASKING, _W.TIMEOUT): Step(_R.ASKING),
    (_R.ROTATING, _W.AGREE): Step(_R.AGREED, (), "the certificate is new"),
    (_R.ROTATING, _W.UNCONFIRMED): Step(_R.EXPECTING, (_A.WAIT,), "another role is desired; waiting for the managers"),
    (_R.ROTATING, _W.CONFIRMED): Step(_R.ASKING, (_A.RENEW,), "the swarm wants another role"),
    (_R.ROTATING, _W.ROTATE): Step(_R.ROTATING),
    (_R.ROTATING, _W.TIMEOUT): Step(_R.ROTATING),
}


class IllegalTransition(Exception):
    """A pair that no table knows; carries the story of that machine."""

    def __init__(self, state: str, event: str, story: list[str]) -> None:
        super().__init__(f"no transition for {state!r} on {event!r}; story: {' | '.join(story[-20:])}")
