# %% [markdown]
# # 2. *The long answer*
#
# After this you will be able to say why numbers may be short and their sum must not be, to
# compute sums as a GPU's tensor core does, bit for bit, and to predict how wrong a long sum in
# few digits will be. It needs forty minutes, and tutorial 1.
#
# The newspapers told the second half of the story, too: having shortened its numbers, DeepSeek
# multiplied them, and stretched the *answer* across 32 bits, so that it was more precise. That
# was well observed. A neural network does little else than multiply numbers in pairs and add up
# the products, thousands of them for each answer. In this tutorial the numbers have eight bits,
# as in tutorial 1. We ask only how their sum should be kept.

# %%
import inspect

import torch
from plot_style import plt

from minimoe.precision import BF16, E4M3, FP16, round_to

torch.set_num_threads(1)  # tensors as small as ours gain nothing from more

# %% [markdown]
# ## A ledger with three digits
#
# A clerk keeps a total, and his ledger has room for three digits: 1.00 thousand, 1.01 thousand,
# and so on. He adds 1, again and again, and after each addition writes down what three digits
# can say.
#
# **Before you run the next cell, predict:** what does the ledger say after two thousand
# additions? Write it down.

# %%
total = 0.0
for _ in range(2000):
    total = float(f"{total + 1:.2e}")  # three digits, as in tutorial 1's almanac
print("the ledger says", total)
assert total == 1000  # 1001 would need four digits

# %% [markdown]
# At a thousand it stands still for ever. Each single addition was rounded correctly: 1001 in
# three digits *is* 1.00 thousand. But nothing that comes after can move the total any more. This
# is called **stagnation**. It is not that an addition errs much; it is that all of them err in
# the same direction.
#
# A binary ledger with so many digits behaves likewise. Up to a power of two it counts; there the
# distance between neighbours grows from 1 to 2, and 1 is half of that, a tie, which goes to the
# even one and is lost. With the unit roundoff u of tutorial 1 this happens at 1 / u.
#
# **Predict** where BF16 (eight binary digits) and FP16 (eleven) stand still.

# %%
for fmt in (BF16, FP16):
    total = torch.zeros((), dtype=fmt.dtype)
    for _ in range(3000):
        total += 1  # torch rounds after each addition
    print(f"{fmt}: stands still at {total.item():g}; 1 / u = {1 / fmt.unit_roundoff:g}")
    assert total.item() == 1 / fmt.unit_roundoff  # theory

# %% [markdown]
# ## The sum of products
#
# Now to what a network does: two rows of 8-bit numbers are multiplied pair by pair, and the
# products added. One thing first. Is the *product* of two such numbers already wrong? A number
# of E4M3 has four binary digits (the leading 1 and three more), so a product has at most eight,
# and BF16 has eight. We try all of them.

# %%
positive = E4M3.values[:127]
products = positive[:, None] * positive
assert (round_to(products, BF16) == products).all()  # so every error below is the sum's
print(f"{products.numel():,} products, none of them rounded in BF16")

# %% [markdown]
# So the multiplication is innocent. Whatever goes wrong from here on goes wrong in adding.
#
# We add many products of random numbers between 0 and 1, which are a quarter on average, and
# watch the running total in 16 bits of both kinds and in 32.
#
# **Predict:** the true total grows along a straight line. Draw beside it what BF16 and FP16 will
# say.

# %%
generator = torch.Generator().manual_seed(0)
a, b = (round_to(torch.rand(16_384, generator=generator), E4M3) for _ in range(2))
terms = a * b  # exact
history = {}
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    total, totals = torch.zeros((), dtype=dtype), []
    for term in terms.to(dtype):
        total = total + term  # rounded to dtype
        totals.append(total.item())
    history[dtype] = torch.tensor(totals)
exact = terms.double().cumsum(0)

# %%
figure, axis = plt.subplots()
axis.plot(exact, color="#999999", linewidth=5, alpha=0.6, marker="", label="exact")
for dtype, totals in history.items():
    axis.plot(totals, marker="", label=str(dtype).removeprefix("torch."))
axis.set(xlabel="products added so far", ylabel="the running total")
axis.set_title("Kept in 16 bits, the total stops growing")
axis.legend()
ends = {dtype: totals[-1].item() for dtype, totals in history.items()}
print(f"in the end: exact {exact[-1]:.2f}", {str(k)[6:]: v for k, v in ends.items()})
assert ends[torch.bfloat16] < 0.1 * exact[-1]  # it stood still early
assert ends[torch.float16] < 0.7 * exact[-1]  # later, but it did
assert abs(ends[torch.float32] / exact[-1] - 1) < 1e-5  # 32 bits are enough

# %% [markdown]
# Stagnation again, and again it ends at 1 / u: half the distance between neighbours is 1 there,
# and none of our products is larger. It does not come out of the blue. On the last stretch before
# it only products above a half count, each as a whole. Of the true total BF16 keeps a small part,
# and FP16 about half. Float32 lies on the line. That is the newspapers' long answer, and it is no
# luxury.
#
# ### Exercise 1: a sum kept in few bits
#
# Write `running_sum(terms, fmt)`: add the terms one after another, and round the total to `fmt`
# after every addition. Do the adding in float64 (`terms.double()`), so that `round_to` alone
# decides what is lost.

# %%
from checks.tutorial_02 import check_core_sum, check_promoted_sum, check_running_sum


def running_sum(terms, fmt):
    """The sum of a tensor's numbers, one after another, kept in ``fmt``: a float."""
    # your code here


# %%
check_running_sum(running_sum)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def running_sum(terms, fmt):
#     total = torch.zeros((), dtype=torch.float64)
#     for term in terms.double():
#         total = round_to(total + term, fmt)
#     return total.item()
# ```
#
# </details>

# %% [markdown]
# ## How wrong, in theory
#
# Each addition rounds the total, and makes an error of at most the share u of it. If all of them
# have the same direction, K additions come to no more than
#
# > K · u
#
# of the whole (of the sum of magnitudes, where signs differ). This is *certain*; it is a theorem.
# (It holds where terms are added one by one, each sum rounded to the nearest. The bound of the
# textbooks, γ = K·u / (1 − K·u), holds in any order, but says nothing once K·u reaches 1: below
# it is printed as inf.) But if some errors go up and others down as a coin falls, most of them
# cancel, and what is left grows only like
#
# > √K · u,
#
# as the distance that a drunken man gets from his lamp-post. This is a rule of *chance*, and like
# all of them it wants independence.
#
# To measure, we let the package sum for us. An `Accumulator` is a way of keeping sums; its
# `matmul` multiplies two matrices with all sums kept that way. The exact product comes from
# float64, which has digits to spare for E4M3.

# %%
from minimoe.precision import Accumulator, measure_error


def operands(kind, K, seed=0):
    """E4M3 numbers (32, K) and (K, 32), and their product, exact."""
    g = torch.Generator().manual_seed(seed)
    draw = torch.rand if kind == "uniform" else torch.randn
    a_MK, b_KN = draw(32, K, generator=g), draw(K, 32, generator=g)
    if kind == "normal + 1":
        a_MK, b_KN = a_MK + 1, b_KN + 1
    a_MK, b_KN = round_to(a_MK, E4M3), round_to(b_KN, E4M3)
    return a_MK, b_KN, a_MK.double() @ b_KN.double()


# %% [markdown]
# **Predict:** the error of FP16 sums of positive numbers, the worst of about a thousand, against
# the length K. Will it follow √K · u or K · u? And the error of sums of normal random numbers,
# half of which are negative, measured against the sum of their *magnitudes*?

# %%
lengths = [64, 256, 1024, 4096, 16_384]
fp16 = Accumulator.fp16()
positive, normal = [], []
for K in lengths:
    a, b, exact = operands("uniform", K)
    positive.append(measure_error(fp16.matmul(a, b), exact).max_relative)
    a, b, exact = operands("normal", K)
    error = measure_error(fp16.matmul(a, b), exact, a=a, b=b)
    normal.append(error.backward)  # against |a| |b|, the sum of magnitudes

# %%
u, K = FP16.unit_roundoff, torch.tensor(lengths)
figure, axis = plt.subplots()
axis.loglog(K, positive, label="positive numbers")
axis.loglog(K, normal, label="normal numbers, against magnitudes")
axis.loglog(K, K * u, ":", marker="", color="black", label="K · u: certain")
axis.loglog(K, K.sqrt() * u, "-.", marker="", color="#666666", label="√K · u: chance")
axis.set_xticks(lengths, lengths)
axis.minorticks_off()
axis.set(xlabel="K, products in a sum", ylabel="worst relative error, FP16")
axis.set_title("Chance rules short sums; in long ones errors take one side")
_ = axis.legend()

# %%
from minimoe.precision.analysis import gamma

for K, error in zip(lengths, positive, strict=True):
    theory = f"√K · u = {K**0.5 * u:6.2%}, K · u = {K * u:7.2%}, γ = {gamma(K, u):7.2%}"
    print(f"K = {K:5}: error {error:6.2%}, {theory}")
    assert error <= K * u  # the theorem
assert positive[1] < 2 * lengths[1] ** 0.5 * u  # a short sum goes by chance
assert positive[-1] > 3 * lengths[-1] ** 0.5 * u  # a long one does not
assert max(normal) < 3 * min(normal)  # of numbers that cancel: does not grow at all

# %% [markdown]
# Short sums follow the drunken man. Long sums of positive numbers leave him, because the errors
# have ceased to be independent: where the total stagnates, every addition errs downwards. The
# certain bound still holds, as it must. Whoever tests long 16-bit sums against √K · u will
# one day blame a program that is right.
#
# Sums of numbers with both signs stay small beside their magnitudes. Nothing stagnates there, and
# the error does not even grow.
#
# ## A measure that means nothing
#
# Why "against magnitudes"? Because normal numbers cancel. Their sum may come out near zero by
# chance, and any error is enormous beside it.
#
# **Predict:** the same accumulator, the same kind of numbers, eight different seeds. How much
# will the *relative* error of the worst sum differ from seed to seed?

# %%
relative, magnitudes = [], []
for seed in range(8):
    a, b, exact = operands("normal", 512, seed)
    error = measure_error(fp16.matmul(a, b), exact, a=a, b=b)
    relative.append(error.max_relative)
    magnitudes.append(error.backward)
print("relative to the sum:  ", " ".join(f"{x:6.0%}" for x in relative))
print("relative to magnitudes", " ".join(f"{x:6.2%}" for x in magnitudes))
assert max(relative) / min(relative) > 3 > max(magnitudes) / min(magnitudes)

# %% [markdown]
# The first row is noise: it says which seed had the unluckiest sum, not how good the ledger is.
# So a statement such as "sums are off by 2 %" is empty until it says of which numbers and in
# which measure. From here on we take positive numbers where we speak of relative errors.
#
# ## What the chip really does
#
# DeepSeek's machines do not add one product after another. Their *tensor cores* take 32 products
# at a time, write them below each other together with the total so far, as in column addition,
# and line them up by the largest. What hangs over on the right is not rounded but cut off:
# 14 binary digits are kept, the leading one and 13 behind it. Then the column is added, and
# the total cut to 14 digits again. All this was found out by experiment (DeepSeek-V3 report,
# sections 3.3.2 and 3.5.2; Khattak and Mikaitis, arXiv 2512.07004).
#
# ### Exercise 2: a tensor core in eight lines
#
# Write `core_sum(x)`: the sum of a tensor's numbers, kept so. (The weights they are multiplied
# with are all 1, to have the products without work. With other weights lining up is a little
# different; the package does that, and you need not.) The total begins at 0, and
# for each group of 32, `x.double().split(32)`:
#
# 1. put the group and the total so far into one tensor: `torch.cat((group, total[None]))`;
# 2. the *unit* is 2^(e − 13), e the exponent of the largest magnitude among them (`power` below);
# 3. divide by the unit, cut with `torch.trunc`, add up, multiply by the unit;
# 4. cut this new total likewise, 13 digits behind its own leading one.


# %%
def power(x):
    """The exponent e of the power of two at or below |x|: 2^e <= |x| < 2^(e + 1)."""
    return torch.frexp(x.abs()).exponent.item() - 1


def core_sum(x):
    """The sum of a tensor's numbers as a tensor core keeps it: a float."""
    # your code here


# %%
check_core_sum(core_sum)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def core_sum(x):
#     total = torch.zeros((), dtype=torch.float64)
#     for group in x.double().split(32):
#         column = torch.cat((group, total[None]))
#         unit = 2.0 ** (power(column.abs().max()) - 13)
#         total = torch.trunc(column / unit).sum() * unit
#         unit = 2.0 ** (power(total) - 13)
#         total = torch.trunc(total / unit) * unit
#     return total.item()
# ```
#
# </details>
#
# (If everything is zero the unit is nonsense, but 0 divided by it is 0 all the same.)

# %% [markdown]
# ## Two per cent, or more
#
# V3's report says that with 14 digits the worst relative error at K = 4096 was "nearly 2%", of
# two random matrices; it does not say how they were drawn. We take two kinds whose sums are
# positive: spread evenly between 0 and 1, and normal ones around 1, of which one in six is
# negative.
#
# **Predict:** will the tensor core's totals be too large, too small, or either? Will the error
# grow with K, and if so how?

# %%
core = Accumulator.tensor_core()  # 13 bits behind the leading one
plain = {"uniform": [], "normal + 1": []}
for kind, errors in plain.items():
    for K in lengths:
        a, b, exact = operands(kind, K)
        off = core.matmul(a, b) / exact - 1
        errors.append(off.abs().max().item())
        low = (off < 0).double().mean()
        print(f"{kind:>10}: K = {K:5}, {low:4.0%} too small, worst {errors[-1]:6.2%}")
    assert low == 1  # in the longest sums all of them
    assert 2 < errors[-1] / errors[-2] < 8  # four times as long: about four times
    assert errors[lengths.index(4096)] > 0.02

# %% [markdown]
# In long sums all are too small: cutting goes towards zero, and our totals are positive. So the
# errors add up along K and not along √K. It is stagnation by instalments. V3's report remarks
# that this is the worse the larger a model is, because large models have long sums.
#
# ## Promotion
#
# The remedy in section 3.3.2 is to let no sum grow long. After every 128 products the tensor
# core's total is added to a total in real float32, elsewhere on the chip, and the tensor core
# begins anew at zero. The clerk, that is, brings a slip to the head office every hundred entries
# or so; his ledger keeps its few digits, and the head office has more. (The likeness ends at the
# cost: the head office is slow, and to go there more often would hold up the clerk.)
#
# In the package this is an argument, `promote_every`, and in its source three lines: `split`
# after so many steps, begin at zero, `+=`.

# %%
from minimoe.precision.tensor_core import _sum_steps

print(inspect.getsource(_sum_steps))

# %% [markdown]
# **Predict:** how will the error of promoted sums depend on K?

# %%
promoting, fp32 = Accumulator.tensor_core(promote_every=128), Accumulator.fp32()
promoted, full = [], []
for K in lengths:
    a, b, exact = operands("uniform", K)
    promoted.append(measure_error(promoting.matmul(a, b), exact).max_relative)
    full.append(measure_error(fp32.matmul(a, b), exact).max_relative)

# %%
figure, axis = plt.subplots()
axis.loglog(lengths, plain["uniform"], label="tensor core, 14 digits")
axis.loglog(lengths, promoted, label="the same, promoted every 128")
axis.loglog(lengths, [max(x, 1e-8) for x in full], label="float32 (not below 10⁻⁸)")
axis.set_xticks(lengths, lengths)
axis.minorticks_off()
axis.set(xlabel="K, products in a sum", ylabel="worst relative error, uniform")
axis.set_title("Promotion makes the error independent of the length")
_ = axis.legend(loc=(0.03, 0.27))

# %%
at = lengths.index(4096)
compared = {"14 digits": plain["uniform"], "promoted": promoted, "float32": full}
for name, errors in compared.items():
    print(f"K = 4096, {name:>9}: {errors[at]:9.5%}")
a, b, exact = operands("normal + 1", 4096)
other = measure_error(promoting.matmul(a, b), exact).max_relative
print(f"normal + 1, 14 digits {plain['normal + 1'][at]:.2%}, promoted {other:.3%}")
assert other < plain["normal + 1"][at] / 10
assert promoted[at] < plain["uniform"][at] / 10  # V3's remedy works
assert max(promoted) < 2 * max(promoted[:2])  # and is flat in K
assert full[at] < promoted[at] / 100  # it does not make the sum a float32 sum

# %% [markdown]
# Flat. Every slip carries the error of 128 products, whatever the number of slips, and the head
# office adds next to nothing. So a promoted sum is as exact as the chip's shortest sums; it is
# *not* as exact as float32 throughout, as the lowest line shows. For training it need not be:
# compare it with the rounding of one single 8-bit number in tutorial 1.
#
# And V3's "nearly 2%" without promotion? Our numbers give more than that at K = 4096, and it
# depends on the numbers how much more. The order of magnitude is right, and the remedy works on
# both kinds.
#
# ### Exercise 3: promote it yourself
#
# Write `promoted_sum(x, every)`: split x in chunks of `every`, sum each with
# `tensor_core_sum`, which is given below (it is the package's; yours of exercise 2 would do as
# well), and add the results in float32.


# %%
def tensor_core_sum(x):
    """A tensor's sum as a tensor core keeps it: a float32 tensor without dimensions."""
    return core.matmul(x[None], torch.ones(len(x), 1))[0, 0]


def promoted_sum(x, every):
    """The sum of x, promoted to float32 after each ``every`` numbers."""
    # your code here


# %%
check_promoted_sum(promoted_sum)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def promoted_sum(x, every):
#     total = torch.zeros(())
#     for chunk in x.split(every):
#         total = total + tensor_core_sum(chunk)
#     return total
# ```
#
# </details>

# %% [markdown]
# ## How often?
#
# Why 128 and not 32, or 1024? Every promotion costs time on the chip. V3's engineers write that
# 128 is the shortest interval that still mends the sum without much of that. The precision alone
# we can measure. **Predict:** four times the interval, how much more error?

# %%
a, b, exact = operands("uniform", 4096)
by_interval = {}
for every in (32, 128, 512, 2048):
    way = Accumulator.tensor_core(promote_every=every)
    by_interval[every] = measure_error(way.matmul(a, b), exact).max_relative
    print(f"promoted every {every:4}: worst error {by_interval[every]:.3%}")
more = [by_interval[4 * every] / by_interval[every] for every in (32, 128, 512)]
print("more error for four times the interval:", ", ".join(f"{m:.1f} times" for m in more))
assert min(more) > 4

# %% [markdown]
# More than in proportion. A slip's error is that of a plain sum of its length, and while a slip
# is short its total is small, so that less is cut off.
#
# ## Known beforehand
#
# An engineer who tests such a matmul needs to say how wrong it *may* be, before it is computed.
# The package has this as code: `bound(a, b, recipe)` gives a limit for every element of the
# product. A recipe says how the numbers are rounded and how their sums are kept. With `FULL`
# nothing is rounded (our numbers have eight bits already), so that only the accumulator errs.
# `kind="probabilistic"` is the drunken man's limit where he may be trusted; where he may not, as
# with cutting, and with totals in 16 bits, which may stagnate, it stays the certain one.

# %%
from minimoe.precision import FULL, bound

a, b, exact = operands("uniform", 1024)
ways = {"float32": fp32, "14 digits": core, "promoted": promoting}
ways |= {"FP16": fp16, "BF16": Accumulator.bf16()}
print("K = 1024    worst error    certain     chance")
for name, way in ways.items():
    error = (way.matmul(a, b) - exact).abs()
    kinds = ("deterministic", "probabilistic")
    limits = [bound(a, b, FULL.with_(accumulator=way), kind) for kind in kinds]
    worst, *most = ((x / exact).max().item() for x in (error, *limits))
    print(f"{name:>9}   {worst:11.1e} {most[0]:10.1e} {most[1]:10.1e}")
    assert (error <= limits[0]).all()  # certain
    assert (error <= limits[1]).all()  # fails with a probability of 10⁻⁹

# %% [markdown]
# Every error is below its limit. The limit for 14 digits comes closest, because cutting really
# errs to one side every time; float32's is far above its error, because a bound must think of the
# worst, and rounding is kinder. A test that takes these limits fails only when something is
# wrong. (`minimoe.testing.assert_within_bound` is that test.)
#
# ## Did the newspapers have it right?

# %%
a, b, exact = operands("uniform", 4096)
worst = {}
for name, way in ways.items():
    worst[name] = error = measure_error(way.matmul(a, b), exact).max_relative
    times = error / worst["float32"]
    print(f"{name:>9}: worst error {error:8.1e}, {times:10,.0f} times float32's")
    assert name == "float32" or times > 10  # the claim, with a margin

# %% [markdown]
# They had: the same 8-bit numbers, and a long answer makes the result more precise by orders of
# magnitude. What they could not know is that the chip's long answer was not as long as it was
# sold for, that DeepSeek noticed, and that the 32 bits had to be fetched from elsewhere every
# 128 products.
#
# ## What this leaves out
#
# - The order of additions. Real matmuls split K among many workers; each such sum is shorter,
#   which helps. Only the tensor core's own order is emulated here.
# - Rounding the total at random, up or down, so that small terms move it now and then:
#   `Accumulator.bf16("stochastic")` does not stagnate. Try it in the figure of running totals.
# - Other chips. The 14 digits are those of Hopper (H800, H100); later ones are said to keep more.
# - That the numbers themselves are wrong by a few per cent each. How that and the sums' error
#   compare, `minimoe.precision.decompose` says for any product.
#
# Read next: section 3.3.2 of the DeepSeek-V3 report (arXiv 2412.19437), its paragraph on
# increasing accumulation precision, which this tutorial has now explained in full. In tutorial 7
# a whole model trains in eight bits.
