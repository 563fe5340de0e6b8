# %% [markdown]
# # 1. *Shortening π*
#
# After this you will be able to say what eight bits keep of a number and what they throw away,
# to round as a chip does, by hand and in code, and to choose the scales without which eight
# bits are of little use. It needs forty minutes and some Python; no tutorial comes before it.
#
# In February 2025 the newspapers explained why DeepSeek had trained its model so cheaply. One
# of the reasons: its engineers "lopped off decimals". Who computes with π may take 3.14 for
# 3.14159265…, and the answer is still a good estimate. A machine that keeps eight bits of every
# number instead of sixteen has half as much to store and half as much to carry about.
#
# This is true, and it leaves out the difficult part. We shall see what eight bits really keep
# of π, which numbers they lose altogether, and what DeepSeek did about it.

# %%
import inspect
import math

import torch
from plot_style import plt

from minimoe.precision import BF16, E4M3, E5M2, FP16, FP32, round_to

torch.set_num_threads(1)  # tensors as small as ours gain nothing from more

# %% [markdown]
# ## Two ways of being short
#
# A price list keeps so many *decimals*: two behind the point, whatever stands before it. An
# almanac keeps so many *digits*, and says beside them where the point belongs: the speed of
# light is 3.00 × 10⁸ metres a second. The first is called fixed point, the second floating
# point. (`3.00e+08` is how Python writes 3.00 × 10⁸.)

# %%
things = {"π": math.pi, "light, m/s": 299_792_458, "electron, kg": 9.109e-31}
for name, x in things.items():
    print(f"{name:>12}   two decimals: {x:<14.2f} three digits: {x:.2e}")

# %% [markdown]
# The price list gives the electron no weight at all, and spends digits on light that nobody
# asked for. What goes through a neural network also differs widely in size. So its numbers are
# mostly written as in the almanac: a few digits, and where the point belongs.
#
# ## All the numbers there are
#
# A computer writes both parts in binary. The format that DeepSeek-V3 took is called **E4M3**:
# one bit for the sign, four for the *exponent* E (where the point belongs) and three for the
# *mantissa* M (the digits). Four bits are a number from 0 to 15, three bits one from 0 to 7,
# and together they mean
#
# > ± (1 + M/8) × 2^(E − 7)
#
# The 1 need not be stored, because in binary every number but zero begins with it. The price
# is that there would be no zero; so where E is 0 the 1 is left out, and the number is
# ± M/8 × 2⁻⁶. These few are called *subnormal*. Two patterns, in which all seven bits behind
# the sign are set, mean "no number".
#
# Eight bits have only 256 patterns, so we can list all numbers that there are.


# %%
def value_of(code):
    """What the eight bits of ``code`` (0 to 255, but for 127 and 255) mean in E4M3."""
    sign = -1.0 if code >= 128 else 1.0  # the first bit
    E = code // 8 % 16  # the next four
    M = code % 8  # the last three
    if E == 0:
        return sign * M / 8 * 2.0**-6
    return sign * (1 + M / 8) * 2.0 ** (E - 7)


numbers = [value_of(code) for code in range(127)]  # 127 itself is "no number"
assert numbers == E4M3.values[:127].tolist()  # the package has the same list
print("the smallest:", numbers[:10])
print("the largest: ", numbers[-5:])

# %% [markdown]
# That is the whole stock; the negative numbers are its mirror image. Everything that an 8-bit
# matrix says, it says in these words.
#
# **Before you run the next cell, predict:** how many of them lie from 1 up to (not including)
# 2? How many from 2 up to 4, and how many from 64 up to 128? Write it down.

# %%
for low in (1 / 4, 1, 2, 64):
    inside = [x for x in numbers if low <= x < 2 * low]
    apart = inside[1] - inside[0]
    print(f"from {low:g} up to {2 * low:g}: {len(inside)}, {apart:g} apart")
    assert len(inside) == 2**E4M3.mantissa_bits  # three bits for the digits: 2³ numbers

# %% [markdown]
# As many in each doubling, because three bits say which one. The distance between neighbours
# therefore grows with the numbers. Here they are on two rulers, an ordinary one and one on
# which every step doubles; and beside them **E5M2**, which takes a bit from the digits and
# gives it to the exponent.

# %%
figure, (near, far) = plt.subplots(2, 1, figsize=(7, 4))
for row, fmt in enumerate((E4M3, E5M2)):
    x = fmt.values[fmt.values.isfinite() & (fmt.values > 0)]
    for axis in (near, far):
        axis.plot(x, 0 * x + row, "|", color="black", markersize=14, linestyle="none")
        axis.set(yticks=[0, 1], yticklabels=["E4M3", "E5M2"], ylim=(-0.6, 1.6))
near.axvline(math.pi, color="#d55e00", linestyle="--", marker="")
near.text(math.pi + 0.08, 0.4, "π", color="#d55e00")
near.set(xlim=(0, 8.2), xlabel="value", title="The larger, the farther apart …")
far.set_title("… but as many in each doubling, and E5M2 reaches farther with fewer")
far.set_xscale("log", base=2)
_ = far.set(xticks=2.0 ** torch.arange(-16, 17, 4), xlabel="value, by doublings")

# %% [markdown]
# Where doubling ends, on the left of the lower ruler, are the subnormal numbers: they thin out,
# and then there is nothing down to zero. On the right the stock simply ends.
#
# ## π in eight bits
#
# **Predict:** between 2 and 4 the numbers of E4M3 are quarters. Which of them will π become?
# Will E5M2, with its longer reach, be nearer or farther off? And how many bits does it take to
# be as good as the newspaper's 3.14?

# %%
pi = torch.tensor(math.pi, dtype=torch.float64)
print(f"3.14             : off by {abs(3.14 - math.pi) / math.pi:.5%}")
off = {}
for fmt in (E5M2, E4M3, FP16, BF16, FP32):
    kept = round_to(pi, fmt).item()
    off[fmt] = abs(kept - math.pi) / math.pi
    print(f"{fmt.name} in {fmt.bits:2} bits: {kept:.7f}, off by {off[fmt]:.5%}")
# A format with fewer digits cannot be trusted to be nearer, but for π it goes in order.
assert off[E5M2] > off[E4M3] > abs(3.14 - math.pi) / math.pi > off[BF16]

# %% [markdown]
# So the newspapers flattered eight bits. Their 3.14 is the π of *sixteen* bits (BF16, which
# everybody trained with before). As they stand, eight bits have no 3.14, but a clumsier π. (Under
# a scale, of which more below, π would be rounded to something else.) Reach and digits are paid
# from one purse: E5M2 is worse.
#
# ## Rounding, and the tie
#
# Of two neighbours the nearer is taken. But what if a number lies exactly in the middle? At
# school one rounds up. **Predict** what the format makes of 2.125 and of 2.375, each of them
# exactly in the middle between two of its numbers.

# %%
ties = torch.tensor([2.125, 2.375, 2.625, 2.875])
print("ties:      ", ties.tolist())
print("rounded to:", round_to(ties, E4M3).tolist())

# %% [markdown]
# One down, one up, and so on: of the two neighbours it takes the one whose mantissa M is even.
# The reason is the reason why an honest shopkeeper does not always round in his own favour.
# Always up makes a long bill too high; to even, the errors cancel.

# %%
ties = 1 + (torch.arange(8) + 0.5) / 8  # the eight ties between 1 and 2
up = torch.floor(ties * 8 + 0.5) / 8  # as at school
even = round_to(ties, E4M3)
print(f"mean error, always up: {(up - ties).mean():+.4f}")
print(f"mean error, to even:   {(even - ties).mean():+.4f}")
assert (even - ties).mean() == 0  # four go up, four go down, by the same

# %% [markdown]
# ### Exercise 1: round it yourself
#
# Write `round_e4m3(x)` for one Python float. Four steps do it:
#
# 1. find the power of two at or below |x|: `math.frexp(x)[1] - 1` is its exponent (not `log2`,
#    which is itself rounded);
# 2. do not let the exponent fall below −6: there the subnormal numbers begin, all equally far
#    apart;
# 3. neighbours are an eighth of that power apart. Divide x by this distance, round to a whole
#    number, multiply again. (Python's `round` goes to even.)
# 4. what is beyond ±448, the largest, becomes ±448.

# %%
from checks.tutorial_01 import check_bytes, check_rounding, check_scaling


def round_e4m3(x):
    """The number of E4M3 nearest to the float x; of two equally near, the even one."""
    # your code here


# %%
check_rounding(round_e4m3)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def round_e4m3(x):
#     exponent = max(math.frexp(x)[1] - 1, -6)
#     distance = 2.0 ** (exponent - 3)
#     rounded = round(x / distance) * distance
#     return max(-448.0, min(448.0, rounded))
# ```
#
# </details>

# %% [markdown]
# The package's `round_to` does the same to a whole *tensor* (a row, a table or a stack of tables
# of numbers) at once and for every format, and it reads the exponent from the bits of the float.
#
# ## How wrong is one number?
#
# Neighbours are an eighth of a power of two apart, so the nearest is at most a sixteenth of it
# away. This sixteenth is the format's *unit roundoff* u. The worst case is just above a power
# of two, at 1 + u, and there the error is a share of u / (1 + u).
#
# **Predict** the shape of the next figure: the error, as a share of the number, from very small
# numbers to very large ones. Where is it flat? What happens at either end?

# %%
x = torch.logspace(-12, 11, 3000, base=2.0, dtype=torch.float64)
error = (round_to(x, E4M3) - x).abs() / x
u = E4M3.unit_roundoff
figure, axis = plt.subplots()
axis.plot(x, 100 * error, color="#0072b2", marker="", linewidth=0.8)
axis.axhline(100 * u / (1 + u), color="black", linestyle="--", marker="", linewidth=1)
axis.text(0.5, 100 * u / (1 + u) + 2, "theory: u / (1 + u)", ha="center")
ends = {" ← subnormal": E4M3.min_normal, "beyond the largest → ": E4M3.max}
for name, place in ends.items():
    axis.axvline(place, color="black", linestyle=":", marker="", linewidth=1)
    axis.text(place, 75, name, ha="left" if place < 1 else "right")
axis.set_xscale("log", base=2)
axis.set(title="Between the two ends the error stays below u / (1 + u), some 6 %")
_ = axis.set(xlabel="the number, by doublings", ylabel="error, % of the number")

# %%
inside = (x >= E4M3.min_normal) & (x <= E4M3.max)
print(f"worst between the ends: {error[inside].max():.2%}, theory {u / (1 + u):.2%}")
assert error[inside].max() <= u / (1 + u)  # the bound is a theorem
assert error[inside].max() > 0.95 * u / (1 + u)  # and it is reached, or nearly
assert (error[x < E4M3.min_subnormal / 2] == 1).all()  # all of the number is lost
for y in (0.0009, 1000.0):
    print(f"{y} becomes {round_to(torch.tensor(y), E4M3).item()}")

# %% [markdown]
# In the middle the theory holds, and is nearly reached. At the left end the teeth grow: the
# distance between neighbours has stopped shrinking with the numbers; at last the nearest number
# is zero and everything is lost. This is **underflow**. At the right end everything becomes the
# one largest number: **overflow**, here with *saturation*. (Some chips say "not a number"
# instead, which at least is noticed.)
#
# Underflow is the one to be afraid of. It makes no noise, and the corrections by which a network
# learns are often very small numbers.
#
# ## A scale is the heading of a table
#
# Newspapers know the remedy. A table of companies says "in millions" at its head, and its cells
# need only a few digits. In eight bits the heading is called a **scale**: divide all numbers by
# it, round, and remember it to multiply with. The best heading brings the largest cell to the
# largest number of the format: scale = largest magnitude / 448.
#
# (Here the likeness ends: a heading is always a power of ten, and chosen by an editor. A scale
# is whatever the numbers ask for, and is computed anew for every tensor.)
#
# **Predict:** of numbers of about a ten-thousandth, which share becomes zero without a scale?
# Which with one?

# %%
from minimoe.precision import measure_error

torch.manual_seed(0)
small = 1e-4 * torch.randn(100_000)  # as corrections are, after some training
scale = small.abs().max() / E4M3.max
plain, scaled = round_to(small, E4M3), round_to(small / scale, E4M3) * scale
for name, kept in (("no scale", plain), ("one scale", scaled)):
    lost, error = (kept == 0).double().mean(), measure_error(kept, small).relative
    print(f"{name:>9}: {lost:7.2%} became zero, error {error:.1%} of the whole")
assert (plain == 0).all()  # none comes near half of the smallest number
assert (scaled == 0).double().mean() < 0.001

# %% [markdown]
# "Error of the whole" is the size of all errors together over that of all numbers together,
# sizes being added as in Pythagoras' theorem. It is the usual measure; keep it in mind, for it
# will deceive us below.
#
# ### Exercise 2: with a scale
#
# Write `scaled_round(x)`: round a tensor to E4M3 under a scale of its own. Take care of a tensor
# of zeros; real ones occur, and a program that divides 0 by 0 spoils a training run of weeks.


# %%
def scaled_round(x):
    """x, rounded to E4M3 under the scale |x|.max() / 448: a tensor like x."""
    # your code here


# %%
check_scaling(scaled_round)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def scaled_round(x):
#     largest = x.abs().max()
#     scale = largest / 448 if largest > 0 else 1.0
#     return round_to(x / scale, E4M3) * scale
# ```
#
# </details>

# %% [markdown]
# This is how the package makes a scale. `amax` is the largest magnitude; the last line is the
# case of zeros; `clamp_min_` holds the scale itself above the smallest that float32 can say
# well. The other rules, which round the scale to a power of two, are for another day.

# %%
from minimoe.precision.scales import scale_of

print(inspect.getsource(scale_of))

# %% [markdown]
# ## One rich man in the table
#
# Suppose the table has one cell that is thousands of times larger than the rest. A heading that
# suits it makes everybody else's 0.00. Neural networks have such cells; they are called
# **outliers**, and they sit in a few columns.
#
# So let us build one: normal random numbers, one column of which is A times as large. We look at
# the error of the *other* columns. For comparison there is INT8, whole numbers from −127 to 127
# and a scale: eight bits in the manner of the price list.
#
# **Predict:** under one scale for the whole, at which A do the other columns begin to suffer in
# INT8? And in E4M3? Ten, a thousand, a million?

# %%
from minimoe.precision import INT8, fake_quantize

torch.manual_seed(0)
x = torch.randn(128, 4096)
rich = torch.tensor([1000])  # which column
sizes = [10.0**k for k in range(7)]
ways = {"INT8, one scale": (INT8, None), "E4M3, one scale": (E4M3, None)}
ways["E4M3, 1×128"] = (E4M3, (1, 128))  # a scale for each 128 numbers of a row

# %%
others, whole = {name: [] for name in ways}, {name: [] for name in ways}
for A in sizes:
    y = x.clone()
    y[:, rich] *= A
    for name, (fmt, block) in ways.items():
        error = measure_error(fake_quantize(y, fmt, block), y, outliers=rich)
        others[name].append(error.off_outliers)
        whole[name].append(error.relative)

# %% [markdown]
# There is a theory to lay beside it. The scale is A · a / 448, with a the largest magnitude of
# the column before it grew rich. The other numbers, of size about 1, fall among the subnormals
# of E4M3 once 1 / scale is less than 2⁻⁶, that is from A = 448 · 2⁶ / a on.

# %%
edge = E4M3.max / E4M3.min_normal / x[:, rich].abs().max().item()
figure, axis = plt.subplots()
for name, errors in others.items():
    axis.loglog(sizes, errors, label=name)
axis.axvline(edge, color="black", linestyle=":", marker="", linewidth=1)
axis.text(edge, 0.001, " theory: others\n become subnormal")
axis.axhline(1, color="#999999", linestyle="-", marker="", linewidth=0.8)
axis.set(xlabel="A, how many times larger one column is", ylim=(0.0005, 2))
axis.set(ylabel="error of the other columns\n(1: all of them is lost)")
axis.set_title("Whole numbers suffer at once, floating ones much later")
_ = axis.legend(loc="lower left")

# %%
print(f"theory: E4M3 suffers from A = {edge:,.0f} on; error of the others:")
at_1e6 = {name: errors[-1] for name, errors in others.items()}
for name in ways:
    print(f"{name:>15}: A = 10³: {others[name][3]:6.1%}, A = 10⁶: {at_1e6[name]:6.1%}")
print(f"E4M3, one scale, A = 10⁶, of the whole: {whole['E4M3, one scale'][-1]:.1%}")
assert others["INT8, one scale"][0] < others["E4M3, one scale"][0]  # nobody is rich
assert others["INT8, one scale"][3] > 0.9  # price list: lost already at a thousand
assert others["E4M3, one scale"][3] < 0.04  # almanac: not yet
assert at_1e6["E4M3, one scale"] > 0.9 > 3 * at_1e6["E4M3, 1×128"]
assert whole["E4M3, one scale"][-1] < 0.04  # all others are zero: it sees nothing

# %% [markdown]
# Did you expect E4M3 to suffer sooner? Its exponent is worth something: every number brings four
# bits of heading of its own, and the common scale need only be right within their reach. So finer
# scales do protect against outliers, but from a danger that begins later than one would think. In
# whole numbers it is there from the start. (Without a rich man, at the far left, whole numbers
# are even the better ones: where all sizes are alike, bits for the exponent are wasted.)
#
# And see the last line: the measure of the whole is content while all columns but one are lost.
# The rich man's fortune is reported correctly, and it is nearly all of the money. Who measures
# eight bits must say what he measures.
#
# The third line of the figure, a scale for each 128 numbers of a row, rises late and little.
# What is lost there are only the neighbours who share a scale with the rich man.
#
# ## Many headings
#
# The remedy is more headings: cut the matrix in blocks, and give each its own scale. DeepSeek-V3
# uses two shapes. What flows through the network (*activations*: a row for each word, a column
# for each channel) has a scale for every **1×128** numbers of a row. The *weights* have one for
# every square of **128×128**.
#
# A picture says what that does. One single cell is ten million times larger than the others, and
# a black dot is a number that became zero. **Predict** the three pictures: one scale, squares,
# strips.

# %%
torch.manual_seed(0)
x = torch.randn(256, 512)
x[100, 200] = 1e7
blocks = {"one scale": None, "128×128": (128, 128), "1×128": (1, 128)}
zeros = {name: fake_quantize(x, E4M3, block) == 0 for name, block in blocks.items()}
figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.4), sharey=True)
for axis, (name, lost) in zip(axes, zeros.items(), strict=True):
    axis.imshow(lost, cmap="Greys", interpolation="nearest")
    axis.set(title=f"{name}: {lost.sum():,} lost", xlabel="column")
    axis.set(xticks=[0, 128, 256, 384], yticks=[0, 128])
    axis.grid(False)
axes[0].set_ylabel("row")
_ = figure.suptitle("The damage stays within the block of the one large number")

# %%
lost = {name: int(found.sum()) for name, found in zeros.items()}
assert lost["1×128"] <= 128 < lost["128×128"] <= 128 * 128 < lost["one scale"]
print(lost, "of", x.numel())

# %% [markdown]
# ### What the headings cost
#
# Each scale is a float32 of four bytes. Are 8-bit numbers still half the size of 16-bit ones?
#
# ### Exercise 3: the bytes
#
# Write `bytes_of(rows, columns, high, wide)`: the bytes of a matrix in E4M3 whose blocks of
# high × wide numbers have a float32 scale each. At the right and at the lower edge blocks may be
# smaller; they have a scale all the same.


# %%
def bytes_of(rows, columns, high, wide):
    """Bytes of rows × columns 8-bit numbers and of their blocks' scales."""
    # your code here


# %%
check_bytes(bytes_of)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def bytes_of(rows, columns, high, wide):
#     scales = math.ceil(rows / high) * math.ceil(columns / wide)
#     return rows * columns + 4 * scales
# ```
#
# </details>

# %% [markdown]
# The package counts for us, and we can put price and worth side by side.

# %%
from minimoe.precision import quantize

torch.manual_seed(0)
x = torch.randn(512, 512)
for name, block in blocks.items():
    q = quantize(x, E4M3, block)
    share, error = q.nbytes / (2 * x.numel()), measure_error(q.dequantize(), x).relative
    print(f"{name:>9}: {share:.2%} of BF16's bytes, error {error:.2%} without outliers")
    assert 0.5 < share < 0.52  # half the memory: the claim holds, scales and all
    assert 0.02 < error < 0.03  # on kind numbers the headings change next to nothing

# %% [markdown]
# Half the memory: that claim holds, headings included. And on kind numbers, without outliers,
# the finer headings are worth next to nothing; they are an insurance, and a cheap one. The error
# that is left is that of the three bits for digits, and no scale can mend it. How a model can
# learn with such numbers all the same is the matter of the next tutorials: errors to both sides
# cancel when many numbers are added, provided that the *sum* is kept in more than eight bits.
#
# ## What this leaves out
#
# - Scales that are rounded to a power of two, as V3 has for some activations; they must be
#   rounded up (`quantize(x, E4M3, (1, 128), "pow2")`; try `"pow2_down"` and see).
# - Rounding at random, up or down with the right probability, which never loses a small number
#   for good (`round_to(x, fmt, rounding="stochastic")`).
# - Formats with fewer bits still: six, and four, with a scale for every 16 or 32 numbers.
# - That real outliers are not one column of random numbers made large. Ours were built to be
#   seen.
#
# Read next: section 3.3.2 of the DeepSeek-V3 report (arXiv 2412.19437), "Improved Precision from
# Quantization and Multiplication", its first paragraphs; and go on to tutorial 2, where the
# products of such numbers are added up.
