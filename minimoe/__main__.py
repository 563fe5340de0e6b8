"""``python -m minimoe`` is the ``minimoe`` command."""

from minimoe.cli import entry

entry()
