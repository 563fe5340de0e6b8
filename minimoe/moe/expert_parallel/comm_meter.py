"""What goes over the wire: rows of tensors packed into bytes, and a meter that counts them.

A row is one token on its way to one process, or back. ``full`` sends numbers as the layer has them,
``bf16`` in 16 bits, ``fp8`` in 8 with a power of two for every 128 of them (E4M3, as DeepSeek-V3 dispatches
activations and their gradients; arXiv 2412.19437, section 3.3.3). What comes back is bf16 then, as there.

Dimensions: N rows, D model width, K experts a token, P processes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Meter:
    """Bytes, messages and rows that this process sent to others, by leg. A message is what one process sends
    another in one exchange, if it is not empty; what stays at home is not sent."""

    bytes: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)

    def count(self, leg: str, rows_P: Sequence[int], row_bytes: int, home: int) -> None:
        """Rows to each process; ``home`` is this one's place among them."""
        away = [n for process, n in enumerate(rows_P) if process != home and n]
        self.rows[leg] += sum(away)
        self.bytes[leg] += sum(away) * row_bytes
        self.messages[leg] += len(away)
