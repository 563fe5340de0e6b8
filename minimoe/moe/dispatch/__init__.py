"""Dispatchers: interchangeable ways to bring tokens to their experts and the results back.

All compute the equation of ``reference``, the oracle, which takes one token at a time. ``loop`` (one matmul
per expert, fastest on a CPU) and ``grouped`` (all experts in one grouped matmul) are exact; ``capacity``
gives every expert a fixed number of tokens and drops the rest; ``quantized`` computes in 8 bits. ``select``
chooses among them. ``weighted_swiglu`` (the activation and its gradient) and ``small_batch`` are their shared
parts.
"""
