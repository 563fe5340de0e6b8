"""``python -m minimoe`` is the ``minimoe`` command."""

from minimoe.cli.main import entry

entry()
