"""`swarmvisor`: the command line of a node. A contents page: each line of COMMANDS is a command in a module of its own.

Owns   `node.toml`, `join-token`, `<runtime>/supervisord.conf`; with `leave`, the end of everything.
Never  writes what a running process owns; asks supervisord, the control API, or says what to do.
Hears  every topic of the bus (a reader without a name of its own); says nothing there.

A module is imported when its command is used: `swarmvisor --help` and `status` must not wait for grpc.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NamedTuple

import click

from procs.cli.exits import Exit, exit_for
from swarm.errors import SwarmvisorError
from swarm.paths import RUNTIME_DIR_VARIABLE, STATE_DIR_VARIABLE, find_paths

DEBUG_VARIABLE = "SWARMVISOR_DEBUG"
"""Set: an unexpected error shows its traceback."""


class Entry(NamedTuple):
    """Where a command is, and its line in `swarmvisor --help`."""

    module: str
    attribute: str
    help: str


COMMANDS = {
    "init": Entry("procs.cli.init", "command", "Create a node with a swarm of its own, and start it."),
    "join": Entry("procs.cli.join", "command", "Create a node that joins a swarm, and start it."),
    "adopt": Entry("procs.cli.adopt", "command", "Continue as a worker that Docker or swarmd was, and start it."),
    "up": Entry("procs.cli.up", "command", "Start this node's processes."),
    "down": Entry("procs.cli.down", "command", "Stop this node's processes."),
    "status": Entry("procs.cli.status", "command", "Show where this node stands, also with everything down."),
    "update": Entry("procs.cli.update", "command", "Change this node's addresses."),
    "wait": Entry("procs.cli.wait", "command", "Wait until this node is ready."),
    "leave": Entry("procs.cli.leave", "command", "Leave the swarm and wipe this node's state."),
    "join-token": Entry("procs.cli.join_token", "command", "Show the token with which a host joins."),
    "swarm": Entry("procs.cli.swarm", "group", "See and change the swarm's root, settings and lock."),
    "rejoin": Entry("procs.cli.rejoin", "command", "Come back with a certificate that expired too long ago."),
    "unlock": Entry("procs.cli.unlock", "command", "Unlock this manager after a restart."),
    "node": Entry("procs.cli.node", "group", "List and steer the nodes of the swarm."),
    "service": Entry("procs.cli.service", "group", "Create, list and change services."),
    "task": Entry("procs.cli.task", "group", "Look at tasks and their output."),
    "debug": Entry("procs.cli.debug", "group", "Look into the processes of this node."),
    "unit": Entry("procs.cli.unit", "command", "Print a systemd unit for this node."),
    "version": Entry("procs.cli.version", "command", "Show the version."),
}


class Contents(click.Group):
    """Commands by COMMANDS, imported at first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(entry.module), entry.attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.module}.{entry.attribute} is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.command(cls=Contents, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--state-dir", metavar="DIR", help=f"The node's state directory (else ${STATE_DIR_VARIABLE}).")
@click.option("--runtime-dir", metavar="DIR", help=f"Its runtime directory (else ${RUNTIME_DIR_VARIABLE}).")
@click.version_option(package_name="swarmvisor", message="swarmvisor %(version)s")
@click.pass_context
def swarmvisor(context: click.Context, state_dir: str | None, runtime_dir: str | None) -> None:
    """A Docker Swarm node without Docker: the swarm's services as supervised processes."""
    os.umask(0o077)
    context.obj = find_paths(state_dir, runtime_dir)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line; errors become one line on stderr and an exit code, never a traceback."""
    try:
        result = swarmvisor.main(args=None if argv is None else list(argv), standalone_mode=False)
        return result if isinstance(result, int) else Exit.DONE
    except click.ClickException as error:
        error.show()
        return Exit.USAGE if isinstance(error, click.UsageError) else Exit.FAILED
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", Exit.FAILED)
    except SwarmvisorError as error:
        return _fail(error.describe(), exit_for(error))
    except BrokenPipeError:
        # The reader of our output went away (`| head`); keep Python's own flush at exit from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except PermissionError as error:
        return _fail(f"{error.filename}: {error.strerror}; run it as the user that owns the node", Exit.REFUSED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", Exit.FAILED)
    except Exception as error:  # noqa: BLE001  the last line of defence: a sentence, not a traceback
        if os.environ.get(DEBUG_VARIABLE):
            traceback.print_exc()
        return _fail(f"unexpected: {error!r}; run it with {DEBUG_VARIABLE}=1 for the whole story", Exit.FAILED)


def _fail(text: str, code: Exit) -> int:
    click.echo(f"swarmvisor: {text}", err=True)
    return code


def main() -> None:
    """The console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
