# %% [markdown]
# # 6. *MoE or dense?*
#
# After this you will be able to say beforehand how long a layer takes, by counting its
# operations and its bytes; to measure it honestly; to explain the difference; and to say
# when a mixture of experts is worth it and when it is not. It needs forty minutes, and
# tutorial 3.
#
# A mixture of experts, said the newspapers, is much more efficient than one big network.
# An engineer asks back: efficient per *what*? Per letter read? Per multiplication? Per
# second? Per dollar's worth of memory? The answers differ, and one of them is No. We
# shall count, predict and measure.

# %%
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from checks.tutorial_06 import check_operations, check_touched, check_turning
from plot_style import plt

from minimoe.moe import MoE, SwiGLU
from minimoe.tools.timing import measure, peaks

torch.manual_seed(0)
torch.set_num_threads(1)  # so that nothing is shared, and times compare
cpu = torch.device("cpu")

# %% [markdown]
# ## Two rivals
#
# A network is called *dense* if every weight works on every token; *MoE* is short for
# mixture of experts. A race needs a fair rival, and there are two. A dense network with
# as many weights as *work on one token* in the mixture does the same arithmetic. A dense
# network with as many weights as the mixture has *in all* takes the same memory. Who
# compares with only one of them is selling something.

# %%
D, H, E, K = 512, 128, 64, 8  # width, expert's width, experts, of them a token
layers = {
    "dense, same active": SwiGLU(D, (K + 1) * H),
    "dense, same total": SwiGLU(D, (E + 1) * H),
    "mixture": MoE(D, H, E, K),  # with one generalist
}
weights = {}
for name, layer in layers.items():
    weights[name] = sum(p.numel() for p in layer.parameters())
    print(f"{name:20} {weights[name]:10,} weights, {4 * weights[name] / 1e6:5.1f} MB")

# %% [markdown]
# ## Counting operations
#
# To put a token through a matrix takes a multiplication and an addition for each weight:
# two operations. (The bends between the matrices are so few in comparison that nobody
# counts them.) An expert has 3·D·H weights, the gate E·D.
#
# **Exercise 1.** How many operations does the mixture do for T tokens? It has one
# generalist of the same width as an expert.


# %%
def operations(T, D, H, E, K):
    """Multiplications and additions of the mixture's matrices, for T tokens."""
    return None


# %%
check_operations(operations)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def operations(T, D, H, E, K):
#     return 2 * T * (3 * D * H * (K + 1) + E * D)
# ```
#
# </details>
#
# One need not believe a formula. PyTorch can count while a layer runs:

# %%
from torch.utils.flop_counter import FlopCounterMode


def counted(layer, T):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(torch.randn(T, D))
    return counter.get_total_flops()


flops = {name: counted(layer, T=1) for name, layer in layers.items()}
for name, number in flops.items():
    print(f"{name:20} {number / 1e6:5.1f} million operations a token")
assert flops["mixture"] == 2 * (3 * D * H * (K + 1) + E * D)
assert flops["dense, same active"] == 2 * weights["dense, same active"]

# %% [markdown]
# So by arithmetic the mixture costs as much as the small dense network, and it has as
# many weights as the large one. That is the newspapers' sentence, in numbers. If
# multiplying were all, the case would be closed.
#
# ## Counting bytes
#
# But a weight must be *read* before it can be multiplied. A dense layer reads all its
# weights once, however many tokens come. And the mixture? For one token it reads K
# experts. For a second token it reads K others, or partly the same. The more tokens, the
# more experts are asked for, until all must be read.
#
# **Exercise 2.** If every token picks K of E experts, any K, how many experts are asked
# for by T tokens, on average? (A given expert is passed over by one token with the chance
# 1 − K/E.)


# %%
def touched(E, K, T):
    """Experts that get at least one of T tokens."""
    return None


# %%
check_touched(touched)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def touched(E, K, T):
#     return E * (1 - (1 - K / E) ** T)
# ```
#
# </details>
#
# **Before you run the next cell, predict:** from how many tokens on will nine tenths of
# the 64 experts be wanted? The line is the theory, the dots are what our gate (untrained,
# and so without much of an opinion) really asks for.

# %%
some = (1, 2, 4, 8, 16, 32, 64, 128, 256)
theory = [E * (1 - (1 - K / E) ** T) for T in some]
asked = []
for T in some:
    counts = [layers["mixture"].gate(torch.randn(T, D)).counts_E for _ in range(20)]
    asked.append(np.mean([int((counts_E > 0).sum()) for counts_E in counts]))
assert np.allclose(theory, asked, rtol=0.1)
assert theory[some.index(16)] < 0.9 * E < theory[some.index(32)]

# %%
figure, axis = plt.subplots(figsize=(7, 2.8))
axis.plot(some, theory, marker="", color="black", label="theory")
axis.plot(some, asked, linestyle="none", label="asked for by our gate")
axis.set(xscale="log", xlabel="tokens at once", ylabel="experts read, of 64")
axis.set(xticks=some, xticklabels=some)
axis.set_title("A few tokens want nearly all the experts")
_ = axis.legend()

# %% [markdown]
# Hardly more than sixteen. There is the catch. With sixteen tokens the mixture does the
# arithmetic of the small network and reads almost the weights of the large one.
#
# ## The roofline
#
# A processor multiplies at some rate and reads at some rate, and can do both at once. So
# a layer takes *at least* as long as the longer of the two:
#
# $$\text{seconds} \ge \max\left(\frac{\text{operations}}{\text{peak}},\;
# \frac{\text{bytes}}{\text{bandwidth}}\right)$$
#
# This is called the roofline. `peaks` measures both rates on your machine: the one with a
# large matrix product, the other by copying a large block of memory.

# %%
machine = peaks()
peak, bandwidth = machine.flops["float32"], machine.bandwidth
print(f"{peak / 1e9:.0f} billion operations and {bandwidth / 1e9:.0f} GB a second")


def roofline(name, T):
    """Seconds that the layer takes at least."""
    read = weights[name]
    if name == "mixture":
        read -= 3 * D * H * E * (1 - K / E) ** T  # experts that nobody asks for
    return max(T * flops[name] / peak, 4 * read / bandwidth)


# %%
batches = (1, 4, 16, 64, 256, 1024)
predicted = {name: [roofline(name, T) for T in batches] for name in layers}
figure, axis = plt.subplots()
for name in layers:
    axis.loglog(batches, 1e3 * np.array(predicted[name]), label=name)
axis.set(xlabel="tokens at once", ylabel="ms, predicted", xticks=batches)
axis.set(xticklabels=batches)
axis.set_title("By the roofline: as cheap as the small one, but for the middle")
_ = axis.legend()


# %%
def over_small(T):
    return roofline("mixture", T) / roofline("dense, same active", T)


for T in (1, 16, 4096):
    print(f"{T:4} tokens: predicted {over_small(T):.2f} times the small dense")
assert abs(over_small(1) - 1) < 0.1  # the same weights read; the gate is little
assert abs(over_small(4096) - 1) < 0.1  # the same arithmetic

# %% [markdown]
# The left end of each line is flat: there reading takes all the time, and one token costs
# as much as a few. The right end rises with the tokens: there multiplying does. The
# mixture reads little at the left and multiplies little at the right. In the middle it
# must read much, and has not enough to multiply for it.
#
# ## The race
#
# **Predict** again, now against reality. By how much will the three be slower than their
# rooflines? Which of them most? Where will the mixture be faster than the small dense
# network, if anywhere?
#
# The layers take turns, once each a round, and the median counts. That way all see the
# same machine, and none finds its weights still in the processor's cache from the turn
# before: the others have been there meanwhile.


# %%
@torch.no_grad()
def race(T):
    """Median seconds of each layer, all in the same rounds."""
    x_TD = torch.randn(T, D)
    tasks = {name: lambda layer=layer: layer(x_TD) for name, layer in layers.items()}
    return measure(tasks, cpu, rounds=5, warmup=1)


races = {T: race(T) for T in batches}
print("tokens   mixture over the small dense   over the large dense")
for T, times in races.items():
    small = times.ratio("mixture", "dense, same active").value
    large = times.ratio("mixture", "dense, same total").value
    print(f"{T:6} {small:18.2f} {large:25.2f}")

# %%
figure, axis = plt.subplots()
for name, style in zip(layers, plt.rcParams["axes.prop_cycle"], strict=False):
    seconds = np.array([times.median(name) for times in races.values()])
    line = 1e3 * np.array(predicted[name])
    axis.plot(batches, 1e3 * seconds, **style | {"linestyle": ""}, label=name)
    axis.plot(batches, line, **style | {"marker": ""})
axis.set(xlabel="tokens at once", ylabel="ms (lines: predicted)", xscale="log")
axis.set(xticks=batches, xticklabels=batches, yscale="log")
axis.set_title("Measured: above the lines, and in the middle the mixture most")
_ = axis.legend()

# %%
print("measured over roofline", *(f"{name:>20}" for name in layers))
for T, times in races.items():
    above = [times.median(name) / roofline(name, T) for name in layers]
    print(f"{T:15} tokens", *(f"{x:20.1f}" for x in above))

# %% [markdown]
# So the newspapers' sentence survives against the large network, whose every weight
# works. But against the small one, which does the same arithmetic, the mixture loses:
# least at the right end, and badly in the middle. (Your figures will differ from these.
# Their order hardly will.)
#
# ## Where does the time go?
#
# All three lie above their lines; a roofline is a lower bound, after all. A part of that
# is common to all: with few tokens nobody reads at the rate of a plain copy. But in the
# middle the mixture lies above its line by far more than they. Two suspects. First, its
# products are *small*: not one matrix product with all tokens, but many with a few tokens
# each, and small ones run at a lower rate. Second, the *carrying*: scores, sorting,
# gathering, adding up, which a dense layer does not do (tutorial 5).
#
# We can try the first suspect alone. Let every expert multiply as many tokens as it has
# in the race, but without gate, sorting or weights. From its time we make a second
# prediction. (The matrix stands first in each product: for few tokens that is the quicker
# order, and the package takes it too.)

# %%
experts = layers["mixture"].experts


@torch.no_grad()
def one_expert(n):
    """Seconds that an expert takes for n tokens that lie there ready."""
    x_nD = torch.randn(n, D)

    def run():  # all E, one after another, so that each comes from memory
        for e in range(E):
            first_nG = (experts.gate_up_proj[e] @ x_nD.T).T
            switch_nH, through_nH = first_nG.chunk(2, 1)
            middle_nH = (F.silu(switch_nH) * through_nH).contiguous()
            experts.down_proj[e] @ middle_nH.T

    return measure({"": run}, cpu, rounds=5).median("") / E


# %%
print("tokens   for an expert   ms: roofline   small products   measured")
parts = {}
for T, times in races.items():
    busy = E * (1 - (1 - K / E) ** T)
    rows = max(1, round(T * K / busy))  # tokens of each expert that has any
    products = busy * one_expert(rows) + one_expert(T)  # and the generalist
    whole, least = times.median("mixture"), roofline("mixture", T)
    print(f"{T:6} {rows:15} {1e3 * least:14.1f} {1e3 * products:16.1f}", end=" ")
    print(f"{1e3 * whole:10.1f}")
    middle = min(max(products, least), whole)
    parts[T] = [100 * part / whole for part in (least, middle - least, whole - middle)]

# %%
figure, axis = plt.subplots()
below, names = np.zeros(len(batches)), [str(T) for T in batches]
labels = ("roofline", "products, beyond it", "carrying, and all else")
for part, shade in enumerate(("#222222", "#0072b2", "#cccccc")):
    height = np.array([parts[T][part] for T in batches])
    axis.bar(names, height, bottom=below, color=shade, label=labels[part])
    below += height
axis.set(xlabel="tokens at once", ylabel="of the mixture's time, %")
axis.set_title("Why a mixture is slower than its arithmetic")
_ = figure.legend(loc="outside lower center", ncols=3)

# %% [markdown]
# The black part is what counting said. The blue part is what the products took beyond it:
# at the left mostly the slow reading that the dense layers suffer from too, in the middle
# the price of small pieces. Where the tokens are many it shrinks, because every expert
# then has a decent bundle. The grey part is the mail room of tutorial 5, and whatever we
# forgot. (If the products alone took longer than the layer, the two measurements disagree
# by so much, and the bar is cut at 100 %.)
#
# ## The turning point
#
# When does a layer have enough to multiply for what it reads? For a dense one it is a
# matter of the machine alone. With n tokens it takes 2n operations for each weight, and
# some bytes to read it. Both take equally long at one n.
#
# **Exercise 3.** Which? A machine does `peak` operations and reads `bandwidth` bytes a
# second, and a weight has `size` bytes.


# %%
def turning_point(peak, bandwidth, size):
    """Tokens at which multiplying a weight takes as long as reading it."""
    return None


# %%
check_turning(turning_point)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def turning_point(peak, bandwidth, size):
#     return peak * size / (2 * bandwidth)
# ```
#
# </details>
#
# A mixture's expert sees only K/E of the tokens. So for a mixture *all* tokens together
# must be E/K times as many. **Predict** how many that is for DeepSeek-V3, 256 experts and
# 8 a token, on the H800 cards that it was trained with, in eight bits.

# %%
from minimoe.cost import ACCELERATORS, PUBLISHED

h800, v3 = ACCELERATORS["h800"], PUBLISHED["deepseek-v3"]
points = {
    "here": (peak * 4 / (2 * bandwidth), E / K),
    "V3": (h800.fp8 * 1 / (2 * h800.bandwidth), v3.n_experts / v3.top_k),
}
for where, (dense, spread) in points.items():
    print(f"{where:4}: dense from {dense:4.0f} tokens on", end=", ")
    print(f"a mixture from {dense * spread:6,.0f}")
assert points["V3"][0] * points["V3"][1] > 5000

# %% [markdown]
# In training that is no trouble: V3 read up to some sixty million tokens a step (15,360
# sequences of 4,096; section 4.2). In writing it is trouble: one token at a time for each
# reader. A service has to collect readers until thousands write at once, and that is what
# DeepSeek does: it spreads one copy of the model over 320 cards for that purpose (section
# 3.4.2). On your own machine you are *one* reader, at the left end of our figure. There a
# mixture need not read more than the small network and may know as much as the large one:
# not a bad place either, if your memory holds it. The bad place is in between.
#
# ## Then what is it good for?
#
# So far we compared layers of equal arithmetic, and the mixture was slower. It was never
# meant to be faster than *that*. It is meant to be *better* than the small network,
# having so many more weights. The question is whether it is so much better that it makes
# up for its slowness.
#
# `minimoe compare` answers it: three models, a step each in turn, on the same text. It
# takes some minutes for each seed, so here is the record of a run with three, as it lies
# in `docs/`. (Bits per byte; fewer is better. All three read the same tokens. By
# operations and by seconds each is taken at the moment when the first of them had done:
# by operations that was the mixture, by the clock the small network.) **Predict**:
# against the small dense model, does the mixture win at equal tokens? At equal
# operations? At equal seconds?

# %%
record = json.loads(Path("../docs/results/compare-quick.json").read_text())


def row_of(name, equal, source=record):
    """Bits per byte of one model after equal tokens, operations or seconds."""
    models = {model["model"]: model for model in source["models"]}
    return models[name][equal]["all"]


for equal in ("tokens", "flops", "seconds"):
    print(f"equal {equal:8}", end=" ")
    for name in ("dense-active", "dense-total", "moe"):
        bits = row_of(name, equal)
        print(f"{name} {bits['mean']:.3f} ±{bits['deviation']:.3f}", end="   ")
    print()

# %%
print(f"{record['seeds']} seeds, {record['machine']['processor']}")
ours, small, large = (
    {equal: row_of(name, equal)["mean"] for equal in ("tokens", "flops", "seconds")}
    for name in ("moe", "dense-active", "dense-total")
)
assert ours["tokens"] < small["tokens"]
assert ours["flops"] < small["flops"] < large["flops"]
assert small["seconds"] < ours["seconds"] < large["seconds"]

# %%
figure, axes = plt.subplots(1, 3, figsize=(7.6, 3), sharey=True)
for axis, equal in zip(axes, ("tokens", "flops", "seconds"), strict=True):
    for place, name in enumerate(("dense-active", "dense-total", "moe")):
        bits, ours = row_of(name, equal), name == "moe"
        shade, ink = ("#0072b2", "white") if ours else ("#bbbbbb", "black")
        axis.bar(place, bits["mean"], yerr=bits["deviation"], color=shade, capsize=3)
        axis.text(place, 2.17, f"{bits['mean']:.2f}", ha="center", color=ink)
    title = "equal " + equal.replace("flops", "operations")
    axis.set(title=title, ylim=(2.15, 3), xticks=range(3))
    axis.set_xticklabels(["same\nactive", "same\ntotal", "mixture"])
axes[0].set_ylabel("bits per byte (cut at 2.15)")
_ = figure.suptitle("Better per token and per operation; per second is another matter")

# %% [markdown]
# Here is the whole truth in three panels. Per **token** the mixture beats the small
# network and is about level with the large one. Per **operation** it beats both, the
# large one by far. That is what the newspapers meant, and it holds. Per **second**, on
# the record's machine and at this size, the small dense network wins, for the reasons we
# have just taken apart.
#
# Does it stay so? As matrices grow, the blue and the grey parts shrink, and the gap ought
# to shrink with them. The record of a larger comparison:

# %%
gaps = []
larger = json.loads(Path("../docs/results/compare-standard.json").read_text())
for name, source in (("quick", record), ("standard", larger)):
    models = {model["model"]: model for model in source["models"]}
    small, mixture = models["dense-active"], models["moe"]
    slower = small["tokens_per_second"]["mean"] / mixture["tokens_per_second"]["mean"]
    gap = row_of("moe", "seconds", source)["mean"]
    gap -= row_of("dense-active", "seconds", source)["mean"]
    gaps.append(gap)
    print(f"{name:8} {mixture['parameters'] / 1e6:.1f} M weights:", end=" ")
    print(f"{slower:.2f} times as slow", end=", ")
    print(f"at equal seconds {gap:+.3f} bits beside the small dense")
assert gaps[1] < gaps[0]

# %% [markdown]
# It shrinks. Whether it turns round, this record does not say: it has one seed, and a
# hundredth may be luck.
#
# A rule to take home, then, in the order of the questions:
#
# - Is **memory** what you lack? Then dense: a mixture takes the memory of a large model.
# - Do you serve a **few dozen** readers at once? Measure first; that is where a mixture
#   is at its worst.
# - Have you **many tokens at once**, wide matrices, and cards enough to hold it all? Then
#   a mixture buys quality that a dense model of the same arithmetic does not have. That
#   was DeepSeek's case.
# - Are you alone with a **small** model and a processor? Expect the small dense network
#   to win by the clock.
#
# ## What this leaves out
#
# - The backward pass, which multiplies twice as much and carries once more:
#   [speed](../docs/results/speed.md) has it.
# - Your machine's answer in full: `minimoe bench` measures layers, models and writing at
#   many sizes, twice over, and says in one sentence each what is worth it.
# - Attention, which costs both rivals the same; and every other layer of V3: `minimoe
#   cost deepseek-v3` has the roofline of all its parts.
#
# Read next: DeepSeek-V3, arXiv 2412.19437, section 3.4, and OLMoE, arXiv 2409.02060,
# section 4.1, where a mixture is held against a dense model at a far larger size.
