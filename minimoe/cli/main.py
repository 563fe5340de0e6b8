"""The command line: ``minimoe COMMAND``. What the commands are stands in ``commands``.

A user's mistake ends in one line that says what to change; ``--debug`` shows the traceback.
"""

import contextlib
import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import tyro

from minimoe.cli.commands import COMMANDS
from minimoe.cli.commands.train import Train
from minimoe.distributed.elastic import is_torchrun
from minimoe.distributed.errors import PeerFailure
from minimoe.training.loop import Interrupted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, 1 for an error, 130 for an interruption."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    command = _parse(arguments)
    try:
        if is_torchrun() and not isinstance(command, Train):
            raise ValueError("torchrun starts several processes, and of the commands only train knows how")
        command.run()
        return 0
    except PeerFailure:
        return 1
    except Interrupted:
        again = [flag for flag in arguments if flag not in ("--resume", "--overwrite")]
        how = "the same torchrun, with -m minimoe" if is_torchrun() else "minimoe"
        if not is_torchrun() or os.environ["RANK"] == "0":
            _say(f"stopped; everything is saved. To go on: {how} {shlex.join(again)} --resume")
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


def entry() -> None:
    """The ``minimoe`` command. What a terminal cannot show (± · on ASCII ones) becomes a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        status = main()
        sys.stdout.flush()
    except (
        BrokenPipeError
    ):  # ``| head`` has read enough; what is left goes nowhere, also at the process's end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def _parse(arguments: list[str]) -> Any:
    """The command that the arguments describe; a mistake in them ends the process in one line."""
    mistake = io.StringIO()
    try:
        with contextlib.redirect_stderr(mistake):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS,
                prog="minimoe",
                description="Do the tricks that made DeepSeek cheap really work? Measure it here.",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if end.code:
            _say(f"error: {_first_sentence(mistake.getvalue())}")
        raise


def _first_sentence(box: str) -> str:
    """What tyro says in a box of several lines: its first paragraph, and the flag it thinks was meant. The
    title stands in the frame, or where the terminal knows ASCII alone, in a paragraph of its own."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split(r"[─-]{10,}", " ".join(lines))
    paragraphs = paragraphs if "╭" in box else paragraphs[1:]
    message = re.sub(r"^Error parsing \S*__\S*: ", "", paragraphs[0].strip())
    meant = re.search(r"Perhaps you meant:\s+(--[\w.-]+)", " ".join(paragraphs))
    helpful = meant is not None and meant[1] not in message  # not a flag of another command
    remedy = f"perhaps you meant {meant[1]}" if meant and helpful else "see minimoe --help"
    return f"{message.split(' Arguments are applied')[0].rstrip(' .')}; {remedy}"


def _say(message: str) -> None:
    print(f"minimoe: {' '.join(message.split())}", file=sys.stderr)
