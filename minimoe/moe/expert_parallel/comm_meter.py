"""[evidence] A meter for communication: counts the bytes, messages and rows that expert parallelism sends."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Meter:
    """What this process sent to others, by exchange: ``counts``, ``dispatch``, ``combine``, ``combine
    backward`` and ``dispatch backward``. A message is everything that one process sends to another in one
    exchange; an empty one is not counted, and neither are rows that stay on this process."""

    bytes: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)

    def count(self, exchange: str, rows_P: Sequence[int], row_bytes: int, rank: int) -> None:
        """Add an exchange: the rows for each process, where ``rank`` is this process."""
        sent = [n for process, n in enumerate(rows_P) if process != rank and n]
        self.rows[exchange] += sum(sent)
        self.bytes[exchange] += sum(sent) * row_bytes
        self.messages[exchange] += len(sent)
