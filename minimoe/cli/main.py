"""The command line: ``minimoe COMMAND``.

An error ends in one line that says what to change, and exit status 1; ``--debug`` shows the traceback. Wrong
flags end in tyro's message and exit status 2.
"""

import io
import os
import shlex
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from minimoe.cli.commands import COMMANDS, load_command
from minimoe.distributed.errors import Interrupted, PeerFailure
from minimoe.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, 1 for an error, 2 for wrong flags, 130 if interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return 0
    if arguments[0] == "--version":
        print(f"minimoe {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        similar = get_close_matches(arguments[0], COMMANDS, 1)
        remedy = f"did you mean {similar[0]}?" if similar else f"choose one of {', '.join(COMMANDS)}"
        _say(f"error: there is no command {arguments[0]!r}; {remedy}")
        return 2
    return _run(arguments)


def overview() -> str:
    """The commands, one line each, and where to start."""
    lines = [f"  {name:<11} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: minimoe COMMAND [FLAGS]",
            "",
            "Do the techniques that made DeepSeek cheap really work? Measure it here.",
            "",
            *lines,
            "",
            "Start with: minimoe compare (3 minutes on 2 CPU cores), or the notebooks in tutorials/",
            "Flags of a command: minimoe COMMAND --help     Version: minimoe --version",
        ]
    )


def _run(arguments: list[str]) -> int:
    from minimoe.distributed.elastic import is_torchrun  # imports torch

    try:
        if is_torchrun() and arguments[0] != "train":
            raise ValueError("torchrun starts several processes, which only the command train supports")
        _parse(arguments).run()
        return 0
    except PeerFailure:
        return 1
    except Interrupted:
        again = [flag for flag in arguments if flag not in ("--resume", "--overwrite")]
        command = "the same torchrun, with -m minimoe" if is_torchrun() else "minimoe"
        if not is_torchrun() or os.environ["RANK"] == "0":
            _say(f"stopped; everything is saved. To continue: {command} {shlex.join(again)} --resume")
        return 130
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        if "--debug" in arguments:
            raise
        _say(f"error: {error}")
        return 1


def _parse(arguments: list[str]) -> Any:
    """The command that the arguments describe. Raises SystemExit for --help and for wrong flags."""
    import tyro

    name, *flags = arguments
    config = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(load_command(name), prog=f"minimoe {name}", args=flags, config=config)


def entry() -> None:
    """The ``minimoe`` command. Characters that the terminal cannot show (± · in ASCII) are printed as "?"."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # as in ``minimoe --help | head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        status = 1
    sys.exit(status)


def _say(message: str) -> None:
    print(f"minimoe: {' '.join(message.split())}", file=sys.stderr)
