"""[portability] Expert parallelism: the experts of a layer divided among processes, one share on each.

In reading order: ``dispatcher`` (the forward pass of such a layer: dispatch, experts, combine),
``all_to_all`` (the exchange of rows between processes, with its gradient), ``row_format`` (how rows are
packed into bytes, in full precision, BF16 or FP8) and ``comm_meter`` (counts what is sent).
``minimoe.moe.parallelize`` applies it to a model.
"""
