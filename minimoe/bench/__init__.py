"""[evidence] ``minimoe bench``: benchmarks of MoE, FP8 and distillation against the ordinary way.

``case`` defines a comparison as data and ``suites`` lists them; ``layers``, ``low_precision``, ``models`` and
``distillation`` build them; ``checks`` verifies that the compared compute the same; ``measure`` times a case
and ``runner`` all of them; ``crossover`` and ``summary`` turn the records into sentences, ``report`` into a
table, ``figures`` into figures. ``dispatch_crossover`` and ``distill_memory`` are measurements of their own,
run as modules.
"""

from minimoe.bench.case import BuiltCase, Case, Work
from minimoe.bench.measure import Effort, measure_case
from minimoe.bench.suites import FULL, QUICK, SUITES, Plan, cases

__all__ = ["FULL", "QUICK", "SUITES", "BuiltCase", "Case", "Effort", "Plan", "Work", "cases", "measure_case"]
