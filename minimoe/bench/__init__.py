"""Is a mixture of experts, or FP8, or a student, worth it on this machine? ``minimoe bench``.

``case`` is one comparison as data, ``measuring`` times it, ``suites`` lists the comparisons; ``layers``,
``bits``, ``models`` and ``lessons`` build them, ``running`` goes through them and can be stopped; ``summary``
says what came out, in words chosen by the figures alone; ``report`` and ``figures`` show it.
"""

from minimoe.bench.case import Built, Case, Cost
from minimoe.bench.measure import Effort, measure_case
from minimoe.bench.suites import FULL, QUICK, SUITES, Plan, cases

__all__ = ["FULL", "QUICK", "SUITES", "Built", "Case", "Cost", "Effort", "Plan", "cases", "measure_case"]
