"""Who runs a task: `user`, `user:group`, names or numbers, as the host's own tables know them."""

from __future__ import annotations

import grp
import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass

from swarm.clock import Clock, SystemClock
from swarm.errors import BadInput


@dataclass(frozen=True)
class User:
    """A user as a process gets it; uid -1: stay who we are."""

    name: str
    home: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Supplementary groups, the main one included where the host's tables list it."""


REMEMBERED = 2.0
"""Seconds that an answer of the host's tables is used again: a lookup costs 0.6 ms, and a service brings hundreds."""


class Users:
    """The host's users and groups."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._found: dict[tuple[str, ...], User] = {}
        self._until = 0.0

    def current(self, uid: int) -> User:
        """The user that this process runs as; it need not be in the tables."""
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            return User(name=str(uid), home="/", uid=uid, gid=os.getegid())
        return User(name=entry.pw_name, home=entry.pw_dir, uid=uid, gid=entry.pw_gid)

    def find(self, text: str, more_groups: Sequence[str] = ()) -> User:
        """The user that `text` names. Raises BadInput for one that the host does not know."""
        now = self._clock.monotonic()
        if now >= self._until:
            self._found.clear()
            self._until = now + REMEMBERED
        key = (text, *more_groups)
        if key not in self._found:
            self._found[key] = self._look_up(text, more_groups)
        return self._found[key]

    def _look_up(self, text: str, more_groups: Sequence[str]) -> User:
        who, separator, group = text.partition(":")
        entry = _user_entry(who)
        if separator and group:
            gid = _group_id(group)
        elif entry is not None:
            gid = entry.pw_gid
        else:
            raise BadInput(
                f"user {text!r} has no entry on this node, so its group is not known", remedy="write UID:GID"
            )
        extra = [_group_id(name) for name in more_groups]
        if entry is None:
            return User(name=who, home="/", uid=int(who), gid=gid, groups=tuple(dict.fromkeys(extra)))
        listed = os.getgrouplist(entry.pw_name, gid)
        return User(
            name=entry.pw_name,
            home=entry.pw_dir,
            uid=entry.pw_uid,
            gid=gid,
            groups=tuple(dict.fromkeys([*listed, *extra])),
        )


def _user_entry(text: str) -> pwd.struct_passwd | None:
    try:
        if text.isdigit():
            return pwd.getpwuid(int(text))
        return pwd.getpwnam(text)
    except (KeyError, OverflowError) as error:
        if text.isdigit() and int(text) < 2**31:
            return None
        raise BadInput(f"user {text!r} does not exist on this node") from error


def _group_id(text: str) -> int:
    if text.isdigit() and int(text) < 2**31:
        return int(text)
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError as error:
        raise BadInput(f"group {text!r} does not exist on this node") from error
