# %% [markdown]
# # 5. *Moving data*
#
# After this you will be able to bring tokens to their experts and back without a loop
# over tokens, to say beforehand how many bytes travel when the experts sit on different
# machines, and to see two real processes send exactly as many. It needs fifty minutes,
# and tutorial 3.
#
# The newspapers wrote that DeepSeek's engineers minimised the time lost by moving data
# from place to place. That sounds like housekeeping. It is the heart of the matter: a
# mixture of experts saves arithmetic, and pays for it with carrying. Numbers are carried
# from memory to where they are multiplied, and from one machine to another. We look at
# the one, then at the other.

# %%
import inspect
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from checks.tutorial_05 import check_combine, check_sort, check_visited
from plot_style import plt

from minimoe.moe import MoE
from minimoe.tools.timing import measure

torch.manual_seed(0)
torch.set_num_threads(1)  # so that times compare from machine to machine

# %% [markdown]
# ## The errand boy
#
# In tutorial 3 the newsroom was a loop: for each token, for each of its experts, go to
# the expert and bring back the answer. The package keeps that loop as `reference`. Here
# are 512 tokens, 32 experts, four a token, and beside it the way the package really
# takes.

# %%
T, D, H, E, K = 512, 128, 64, 32, 4
moe = MoE(D, H, E, K, n_shared=0)
x_TD = torch.randn(T, D)
routing = moe.gate(x_TD)


def with_dispatch(name):
    with torch.no_grad():
        return moe.experts(x_TD, routing, name)


torch.testing.assert_close(with_dispatch("reference"), with_dispatch("loop"))

# %% [markdown]
# **Before you run the next cell, predict** how many times as long the loop over tokens
# takes. Both do the same multiplications, every one of them.

# %%
tasks = {name: lambda name=name: with_dispatch(name) for name in ("reference", "loop")}
times = measure(tasks, torch.device("cpu"), rounds=5)
slower = times.ratio("reference", "loop")
print(f"token by token {1e3 * times.median('reference'):6.1f} ms")
print(f"the package    {1e3 * times.median('loop'):6.1f} ms:", end=" ")
print(f"{slower.value:.0f} times as fast")

# %% [markdown]
# Where does the time go, if the multiplications are the same? Into *carrying*. To
# multiply by a matrix a processor must read it. The errand boy fetches an expert's whole
# file for every single token that it works on. If we first collect all tokens for an
# expert, the file is fetched once.

# %%
file = 3 * D * H * 4  # bytes of an expert's weights; a number has four
visits = T * K
print(f"token by token: {visits} visits, {visits * file / 1e6:.0f} MB of weights read")
print(f"by expert:      {E} visits, {E * file / 1e6:.1f} MB, a {visits // E}th of it")
print(f"multiplications, both ways: {visits * 3 * D * H / 1e6:.0f} million")

# %% [markdown]
# The ratio of the times is not that of the bytes. Weights as small as ours fit into the
# processor's own store, its cache, where fetching is quick; and every small call,
# whatever it fetches, costs Python some millionths of a second. For a large model, whose
# experts do not fit into any cache, the bytes decide.
#
# ## The mail room
#
# So: collect first. That is what a mail room does. Every token writes K letters, one to
# each of its experts: T·K in all, which we call R rows. Sort the letters by address.
# Deliver each desk its bundle. Sort the answers back.
#
# Below `ids_TK` are the addresses, a row for each token. Flattened, row r belongs to
# token r // K. To sort, we need not move any letter; it is enough to know the order.
#
# **Exercise 1.** Return that order: for the sorted letters, one after the other, where
# each stood before. Letters to the same expert stay in the order in which they were
# (sorting is then called *stable*; `argsort` can do that).


# %%
def sort(ids_TK):
    """(R,) places in the flattened ids, by expert."""
    return None


# %%
check_sort(sort)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def sort(ids_TK):
#     return ids_TK.flatten().argsort(stable=True)
# ```
#
# </details>
#
# Here it is for the first eight tokens of ours:

# %%
few_TK = routing.ids_TK[:8]
order_R = few_TK.flatten().argsort(stable=True)
figure, axes = plt.subplots(2, 1, figsize=(7.6, 2.6))
written_R = few_TK.flatten()
rows = {"as the tokens wrote them": written_R, "sorted": written_R[order_R]}
for axis, (title, addresses) in zip(axes, rows.items(), strict=True):
    axis.imshow(addresses[None], cmap="Greys", aspect="auto", vmin=0, vmax=50)
    for place, address in enumerate(addresses.tolist()):
        axis.text(place, 0, address, ha="center", va="center", size=8)
    axis.set(title=f"Addresses of the letters, {title}", yticks=[])
    axis.grid(False)
_ = axes[1].set_xlabel("letter (the number on it: its expert; the darker, the higher)")

# %% [markdown]
# ## Deliver, and bring back
#
# Now the letters can be laid out in order (`x_TD[order_R // K]`: the same token stands
# there K times), cut into bundles as long as each expert has letters, and each bundle
# multiplied by its expert's matrices, all at once. What comes out are R rows in the
# experts' order.
#
# **Exercise 2.** Bring them back. Each row belongs to a token and has a weight, which
# stands in `weights_TK`, in the tokens' order. Add up every token's K rows, each times
# its weight. (`torch.zeros(…).index_add_(0, tokens_R, rows_RD)` adds row after row to the
# token named.)


# %%
def combine(y_RD, order_R, weights_TK):
    """(T, D): each token's rows, weighted and added up."""
    return None


# %%
check_combine(combine)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def combine(y_RD, order_R, weights_TK):
#     T, K = weights_TK.shape
#     weighted_RD = y_RD * weights_TK.flatten()[order_R][:, None]
#     y_TD = torch.zeros(T, y_RD.shape[1])
#     return y_TD.index_add_(0, order_R // K, weighted_RD)
# ```
#
# </details>
#
# Together: sort, deliver expert by expert, combine. The loop is over 32 experts now and
# no longer over two thousand letters.

# %%
first_EGD = moe.experts.gate_up_proj.detach()  # (E, 2H, D)
second_EDH = moe.experts.down_proj.detach()  # (E, D, H)


def back(y_RD, order_R, weights_TK):
    weighted_RD = y_RD * weights_TK.flatten()[order_R][:, None]
    y_TD = torch.zeros(len(weights_TK), y_RD.shape[1])
    return y_TD.index_add_(0, order_R // K, weighted_RD)


# %%
def by_expert(x_TD, weights_TK, ids_TK):
    order_R = ids_TK.flatten().argsort(stable=True)
    counts = ids_TK.flatten().bincount(minlength=E).tolist()
    answers = []
    for e, x_nD in enumerate(x_TD[order_R // K].split(counts)):
        switch_nH, through_nH = (x_nD @ first_EGD[e].T).chunk(2, 1)
        answers.append((F.silu(switch_nH) * through_nH) @ second_EDH[e].T)
    return back(torch.cat(answers), order_R, weights_TK)


# %% [markdown]
# There is still a loop, and on a graphics card that is bad: the card would wait while
# Python thinks about the next expert. So there is one operation for all bundles together,
# the **grouped matmul**. It takes the sorted rows, all the matrices, and the places where
# the bundles end. Two calls, and no loop at all:


# %%
def grouped(x_TD, weights_TK, ids_TK):
    order_R = ids_TK.flatten().argsort(stable=True)
    ends_E = ids_TK.flatten().bincount(minlength=E).cumsum(0).int()
    x_RD = x_TD[order_R // K]
    first_RG = F.grouped_mm(x_RD, first_EGD.mT, offs=ends_E)
    switch_RH, through_RH = first_RG.chunk(2, 1)
    y_RD = F.grouped_mm(F.silu(switch_RH) * through_RH, second_EDH.mT, offs=ends_E)
    return back(y_RD, order_R, weights_TK)


# %%
weights_TK = routing.weights_TK.detach()
right_TD = with_dispatch("reference")
for way in (by_expert, grouped):
    torch.testing.assert_close(way(x_TD, weights_TK, routing.ids_TK), right_TD)
print("the errand boy, the mail room and the grouped matmul say the same")

# %% [markdown]
# **Predict:** with one token, has the mail room anything to gain? From how many tokens on
# will sorting pay, and will the gain go on growing for ever?


# %%
@torch.no_grad()
def cost_of(n):
    """Median seconds of each way with n tokens."""
    x_TD = torch.randn(n, D)
    some = moe.gate(x_TD)
    tasks = {
        "errand boy": lambda: moe.experts(x_TD, some, "reference"),
        "by expert": lambda: by_expert(x_TD, some.weights_TK, some.ids_TK),
        "grouped": lambda: grouped(x_TD, some.weights_TK, some.ids_TK),
    }
    times = measure(tasks, x_TD.device, rounds=5)
    return {name: times.median(name) for name in tasks}


costs = {n: cost_of(n) for n in (1, 4, 16, 64, 256, 1024)}

# %%
figure, axis = plt.subplots()
for name in costs[1]:
    line = [1e6 * seconds[name] / n for n, seconds in costs.items()]
    axis.loglog(list(costs), line, label=name)
axis.set(xlabel="tokens at once", ylabel="µs a token", xticks=list(costs))
axis.set_xticklabels(list(costs))
axis.set_title("Collected, a token costs a small part of what it costs alone")
_ = axis.legend()

# %%
for name in ("by expert", "grouped"):
    wins = [n for n, seconds in costs.items() if seconds[name] < seconds["errand boy"]]
    alone, shared = costs[1][name], costs[1024][name] / 1024
    print(f"{name:9}: {1e6 * alone:4.0f} µs for one token,", end=" ")
    print(f"{1e6 * shared:4.1f} for each of 1024; the faster way with", *wins)

# %% [markdown]
# The errand boy's line hardly falls: a token costs what a token costs. The others fall
# many times over, because more tokens share each trip to the file, until the
# multiplications themselves are all that is left. With one token there is nothing to
# collect, and the mail room only adds its own paper work. **Collecting needs many tokens
# at once.** (How a mixture then compares with a dense network is another question:
# tutorial 6.)
#
# The package's own `loop` is `by_expert` with the blocks cut to fit the cache and its
# backward pass written by hand (`minimoe/moe/dispatch/loop.py`). Whether it or the grouped matmul
# is the faster depends on the machine and the sizes; `python -m minimoe.bench.dispatch_crossover`
# finds out, and the package's rule for choosing (`dispatch="auto"`) was made from that.
#
# ## Across machines
#
# DeepSeek-V3 was far too large to be trained on one machine. Each machine holds some
# experts of each layer, and letters to the others go by wire. Now the rule of the mail
# room changes a little: two letters of the same token to the same *building* go in one
# envelope. So what counts is how many machines a token visits.
#
# **Predict.** There are 64 experts on 8 machines, eight on each. A token has 8 experts,
# any 8, each choice as likely as another. On how many different machines do they sit, on
# average? All eight? Four?

# %%
torch.manual_seed(0)
experts, machines = 64, 8
each = experts // machines  # experts 0 to 7 are on machine 0, and so on
chosen_TK = torch.rand(20_000, experts).topk(8).indices
visited = [len(set(row)) for row in (chosen_TK // each).tolist()]
print(f"measured: {sum(visited) / len(visited):.3f} of {machines} machines")
print(f"(of {math.comb(experts, 8):,} ways to choose, {len(visited):,} were tried)")

# %% [markdown]
# There is a theory. Look at one machine. It is *missed* if all K experts are among the E
# − E/P that sit elsewhere. There are `math.comb(n, K)` ways to choose K of n, so the
# chance of that is a fraction of two such numbers. And there are P machines, each as
# likely as another.
#
# **Exercise 3.** Write it: the mean number of machines visited.


# %%
def machines_visited(E, K, P):
    """Of P machines with E / P experts each, those that hold any of a token's K."""
    return None


# %%
check_visited(machines_visited)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def machines_visited(E, K, P):
#     missed = math.comb(E - E // P, K) / math.comb(E, K)
#     return P * (1 - missed)
# ```
#
# </details>
#
# V3 adds a rule of its own. A token may visit at most M machines: those whose best
# experts score highest for it (section 2.1.2, "node-limited routing"). Here M is 4, as in
# V3. The lines are the theory (which takes the M machines to be any M), the marks are
# counted.

# %%
from minimoe import ModelConfig
from minimoe.cost import processes_visited
from minimoe.moe import route


def visits_of(top_k, limit):
    """Machines that a token visits on average: in theory, and counted."""
    rule = {"n_groups": machines, "top_groups": limit}
    chosen_TK = route(torch.randn(2000, experts), top_k, **rule).ids_TK // each
    counted = sum(len(set(row)) for row in chosen_TK.tolist()) / 2000
    config = ModelConfig(n_experts=experts, top_k=top_k, **rule)
    return processes_visited(config, machines), counted


# %%
figure, axis = plt.subplots()
picks = (4, 8, 12, 16, 20, 24, 28, 32)
for limit, label in ((None, "free"), (4, "at most 4 machines")):
    theory, counted = zip(*(visits_of(k, limit) for k in picks), strict=True)
    axis.plot(picks, theory, marker="", linestyle="-", color="black")
    axis.plot(picks, counted, linestyle="none", label=label)
    for t, c in zip(theory, counted, strict=True):
        assert t * 0.97 < c < (t * 1.03 if limit is None else limit + 1e-9)
axis.set(xlabel="experts a token, K", ylabel="machines visited, of 8", ylim=(0, 8.5))
axis.set_title("A token with 8 experts visits most machines, unless it is told not to")
_ = axis.legend(loc="lower right")

# %% [markdown]
# Free, the theory is exact. With the limit it says a little too little where K is small:
# the machines are not any four but those with the best experts, and so a token hardly
# ever leaves one of its four out. Four is the most it can be.
#
# ## What an envelope weighs
#
# For every token and every other machine that it visits, four things travel in training:
# there the token itself, D numbers, with the K weights and numbers of its experts; back
# the answer, D numbers; and in the *backward pass*, which reckons from the end of the
# model to its beginning how the error would change with each number (its *gradient*), the
# gradients of both, the other way. With two bytes a number (`bf16`), or with eight bits
# on the way out and a scale for every 128 of them (`fp8`, as V3 does; see tutorial 1;
# here it is a power of two, so that one byte says it), `traffic` counts the bytes:

# %%
from minimoe.cost import PUBLISHED, all_to_all, traffic

v3 = PUBLISHED["deepseek-v3"]
for wire in ("bf16", "fp8"):
    row = traffic(v3, wire)
    print(f"{wire:5} there {row.dispatch:6,}, back {row.combine:6,}, gradients", end="")
    print(f" {row.combine_backward:6,} and {row.dispatch_backward:6,} bytes")
assert traffic(v3, "bf16").combine == 2 * v3.dim  # D numbers of two bytes

# %% [markdown]
# Now put it together: V3's layer, with its experts on 8 machines (of 8 graphics cards
# each) that are joined by InfiniBand of 50 GB/s a card (section 3.2.2). **Predict** which
# saves more: to go to at most four machines, or to send eight bits where one can?

# %%
away = {}  # other machines that a token goes to; its own is as likely as any
for name, rule in {"free": {}, "at most 4": {"n_groups": 8, "top_groups": 4}}.items():
    logits_TE = torch.randn(20_000, v3.n_experts)
    routing = route(logits_TE, v3.top_k, score="sigmoid", **rule)
    there_TP = F.one_hot(routing.ids_TK // (v3.n_experts // 8), 8).amax(1)
    away[name] = there_TP.sum(1).double().mean().item() * 7 / 8
theory = processes_visited(replace(v3, top_groups=None), 8) * 7 / 8
assert abs(away["free"] / theory - 1) < 0.01

# %%
plans = {}
for name, pairs in away.items():
    for bits, wire in ((16, "bf16"), (8, "fp8")):
        plans[f"{name}, {bits} bits"] = replace(all_to_all(v3, wire), destinations=pairs)
share = {name: plan.bytes / plans["free, 16 bits"].bytes for name, plan in plans.items()}
for name, plan in plans.items():
    print(f"{name:18} {plan.destinations:.2f} other machines", end=", ")
    print(f"{plan.bytes / 1e3:4.0f} kB a token and layer ({share[name]:4.0%})", end=", ")
    print(f"{plan.microseconds:.1f} µs")
assert abs(share["free, 8 bits"] - share["at most 4, 16 bits"]) < 0.05

# %% [markdown]
# They save nearly the same, a quarter each, and together nearly half. (The documentation and
# `minimoe cost` print 3.18 machines for the limit: they use the theory of the last
# figure.) A few millionths of a second seem nothing. But there are 58 such layers, and
# 14.8 trillion tokens. The whole pre-training took 2.664 million hours of graphics cards
# (V3, table 1). If every card had to stand still while its tokens travel:

# %%
from minimoe.cost import PUBLISHED_RUNS

run = PUBLISHED_RUNS["deepseek-v3"]
whole = run.hours["pre-training"] / 1e6  # in millions
hours = {}
for name, plan in plans.items():
    seconds = plan.microseconds / 1e6 * v3.n_moe_layers * run.tokens
    hours[name] = seconds / 3600 / 1e6
assert hours["at most 4, 8 bits"] < 0.6 * hours["free, 16 bits"]

# %%
figure, axis = plt.subplots(figsize=(7, 2.6))
bars = axis.barh(list(hours), list(hours.values()), color="#0072b2")
shares = [f"{h / whole:.0%} of the training" for h in hours.values()]
axis.bar_label(bars, shares, padding=4)
axis.set(xlabel="million card-hours on the wire (predicted)", xlim=(0, 2.4))
axis.invert_yaxis()
_ = axis.set_title("Fewer machines and fewer bits save nearly half the travelling")

# %% [markdown]
# That is the bill for carrying, and it shows why it was worth an engineer's while. V3
# brings even the rest nearly to nothing: while some tokens travel others are computed,
# one small batch's way forward against another's way back (section 3.2.1, "DualPipe").
# The bytes are still sent, but nobody waits for them.
#
# What does the limit cost? Some tokens do not get the experts they would have liked best.
# We can see how much of the score they give up, with a gate of random numbers:

# %%
logits_TE = torch.randn(4000, experts)


def score(**rule):
    """The sum of the scores picked."""
    picked = route(logits_TE, 8, score="sigmoid", normalize=False, **rule)
    return float(picked.weights_TK.sum())


kept = score(n_groups=machines, top_groups=4) / score()
print(f"of the score that it would have picked freely, a token keeps {kept:.1%}")
assert 0.9 < kept < 1

# %% [markdown]
# ## Two real processes
#
# Enough of theory; let something really travel. We start two processes on your machine,
# which share no memory and can only send each other messages, through `torch.distributed`
# and its library *gloo*. Each builds the same layer of sixteen experts, keeps its half of
# them, and brings tokens of its own. This is what each of them runs (it stands in
# `workers.py`, because a fresh process can read a file but not this page):

# %%
import workers

from minimoe.distributed.spawn import run_processes

print(inspect.getsource(workers.one_step))

# %% [markdown]
# The `Meter` counts every byte that a process sends to the other. Three ways to send:
# numbers as they are, of four bytes each (`full`); in eight bits (`fp8`); and in eight
# bits with each token limited to *one* of the two processes. **Predict** the bytes of the
# second and the third, as a share of the first.

# %%
settings = {
    "as they are": (None, "full"),
    "8 bits": (None, "fp8"),
    "8 bits, limited": (1, "fp8"),
}
metered = {}
for name, setting in settings.items():
    metered[name] = run_processes(workers.one_step, 2, *setting)
print("experts that each process holds:", [each["held"] for each in metered["8 bits"]])

# %% [markdown]
# First: is the answer right? A single process with all sixteen experts must say the same
# about each one's tokens. With eight bits on the wire it is a little off, by less than
# rounding to eight bits alone is (tutorial 1), because a part of each answer comes from
# experts at home.

# %%
whole_layer = workers.make_layer()
for rank in (0, 1):
    with torch.no_grad():
        alone_TD = whole_layer(workers.make_tokens(rank))[0]
    torch.testing.assert_close(metered["as they are"][rank]["y"], alone_TD)
    off = (metered["8 bits"][rank]["y"] - alone_TD).norm() / alone_TD.norm()
    print(f"process {rank}: the same to rounding; with 8 bits off by {off:.1%}")
    assert 0 < off < 0.026  # that of rounding to E4M3

# %% [markdown]
# Second: the bytes. We count the tokens that had to go to the other process, multiply by
# the weight of an envelope, and hold it against the meters.

# %%
shape, totals = ModelConfig(dim=128, n_experts=16, top_k=4, n_groups=2), {}
for name, (limit, wire) in settings.items():
    config = replace(shape, top_groups=limit)
    away = 0
    for rank, process in enumerate(metered[name]):
        elsewhere_TK = process["ids"] // 8 != rank  # eight experts on each
        away += int(elsewhere_TK.any(1).sum())
    predicted = traffic(config, wire).total(away, 2)
    sent = sum(sum(process["bytes"].values()) for process in metered[name])
    totals[name] = sent
    print(f"{name:16} {away} tokens went abroad", end=": ")
    print(f"predicted {predicted:,.0f} bytes, metered {sent:,}", end=" ")
    print(f"({sent / totals['as they are']:.0%})")
    assert sent == predicted  # to the byte

# %% [markdown]
# To the byte. Nothing is hidden in the sending of tokens; it can be reckoned out on paper
# before a single machine is bought. (The meter stands where tokens are handed over. What
# the network's own envelopes add, by the counters of the operating system, is a quarter
# of one per cent; see [expert parallelism](../docs/results/expert-parallelism.md).)
#
# Eight bits are a quarter of 32, and yet the second line is more than a quarter of the
# first: only what goes *to* the experts is sent in eight bits. What comes back is added
# up, and travels in sixteen, as in V3. That is tutorial 2's care for sums again. In the
# third line nearly half of the tokens need not travel at all, because the one process
# that they may visit is their own.
#
# Did it go faster with two processes? On one machine, no: they share the same cores and
# the same memory, and waiting comes on top. `minimoe experiment expert-parallel-speed` measures it,
# and that page has what came out, the loss included. Experts are spread over machines
# because they do not fit on one.
#
# ## What this leaves out
#
# - The gradients' way back through sort and combine. It is the same journey the other way
#   round: `minimoe/moe/dispatch/grouped.py` has it in fifteen lines.
# - Fixed places for every expert, the older way, which turns away the tokens that find
#   none: `minimoe/moe/dispatch/capacity.py`.
# - Passing on inside a machine. V3 sends a token once to each machine and lets the cards
#   there pass it on by a faster wire (section 3.2.2); ours sends to each process.
# - Hiding the travelling behind work (section 3.2.1), and moving experts to where the
#   load is (section 3.4.1; `minimoe/moe/eplb.py`).
#
# Read next: DeepSeek-V3, arXiv 2412.19437, sections 2.1.2 and 3.2.
