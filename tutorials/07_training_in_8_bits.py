# %% [markdown]
# # 7. *Training in 8 bits*
#
# After this you will be able to name the three products in which a layer learns, to say how
# DeepSeek makes each of their operands 8 bits wide, and to judge from a gap between losses, and
# from its spread, whether eight bits were accurate enough. It needs fifty minutes, and
# tutorials 1 and 2.
#
# Finished models had often been put into eight bits before. To *train* in them was rarer, and
# with a model so large nobody had shown that it works: each calculation is less accurate, as the
# newspapers wrote, and a model is made of untold numbers of them, one building on the other. V3's
# report says that it went well all the same: in two trial models the *loss*, the number that
# training makes small, stayed within 0.25 % of the loss with sixteen bits (section 3.3 and
# appendix B.1). We try it, on a model small enough to be trained here a dozen times.

# %%
import inspect
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from checks.tutorial_07 import check_gradients, check_loss_factor, check_weight_gradient
from plot_style import plt

from minimoe.precision import E4M3, fake_quantize, measure_error, quantize

torch.set_num_threads(1)  # matrices as small as ours gain little from more


# %% [markdown]
# ## Three products
#
# Nearly all the work of a network is done in its *linear layers*. Such a layer has a matrix of
# weights, `w_IO`, a row for each of its I inputs and a column for each of its O outputs. What
# comes in is `x_TI`, a row for each of T tokens (here: bytes of text). What goes out is their
# product,
#
# > `y_TO = x_TI @ w_IO`.
#
# To learn, the network is told how much the loss would change with each number that went out.
# That is the *gradient* `g_TO`. The layer has two duties then. It must say how the loss would
# change with what came *in*, so that the layers before it can learn too: `dx_TI`. And how it
# would change with its own weights, which will be corrected accordingly: `dw_IO`.
#
# An editor does the same with a reader's complaint: one part he passes on to the reporter who
# supplied the material, from the other he learns himself. (The likeness ends there: the editor
# may shrug it off.)
#
# ### Exercise 1: the other two products
#
# Both gradients are products of two of the three matrices `x_TI`, `w_IO`, `g_TO`. The dimensions
# leave only one way: what does not appear in the answer is what must be summed over. Write
# `gradients`; `.mT` turns a matrix round.
# %%
def gradients(x_TI, w_IO, g_TO):
    """The gradients (dx_TI, dw_IO) of the layer y = x w, given the gradient g of y."""
    # your code here


# %%
check_gradients(gradients)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def gradients(x_TI, w_IO, g_TO):
#     dx_TI = g_TO @ w_IO.mT
#     dw_IO = x_TI.mT @ g_TO
#     return dx_TI, dw_IO
# ```
#
# </details>

# %% [markdown]
# So there are three products of equal cost, and each sums over another axis:
#
# | product | operands | summed over |
# |---|---|---|
# | forward | activation x, weight w | inputs |
# | input gradient | gradient g, weight w | outputs |
# | weight gradient | activation x, gradient g | tokens |
#
# DeepSeek-V3 does all three in eight bits, with the sums in more (tutorial 2). What is *not* in
# eight bits: the weights themselves, of which 8-bit copies are made for the products, because
# the corrections are far smaller than the steps between 8-bit numbers; and the embedding, the
# output layer, the norms, the gates and the core of attention (parts of a model that tutorials 3
# and 9 introduce; here it is enough that they are the smaller part of the work).
#
# ## Who shares a scale
#
# In tutorial 1 each 128 numbers of a row had a scale of their own. Why of a *row*? Write the sum
# out. If 128 inputs of a token have the scale s, and the weights they meet have the scale t, then
#
# > Σ (s · code of x) · (t · code of w)  =  s · t · Σ (code of x) · (code of w),
#
# and the chip can add up plain codes and multiply by s · t once. It does so just when the sum is
# taken to float32 after 128 products. But s can be taken out of the sum only if all numbers
# summed have the same s. The numbers that share a scale must lie **along the axis that is summed
# over**.
#
# Now x is in two products, and summed over inputs in one and over tokens in the other. **Before
# you run the next cell, predict:** if you paint each number of x with the size of its scale, what
# do the forward product and the weight gradient look like? And w, which is in squares of 128?

# %%
torch.manual_seed(0)
unequal = 2 ** torch.randn(256) * 2 ** torch.randn(256, 1)  # rows, columns of all sizes
x, w = torch.randn(256, 256) * unequal, torch.randn(256, 256) * unequal
casts = {"x, forward: 1×128": (x, (1, 128)), "x, weight grad.: 128×1": (x, (128, 1))}
casts["w, always: 128×128"] = (w, (128, 128))
figure, axes = plt.subplots(1, 3, figsize=(7.4, 2.8))
for axis, (name, (matrix, block)) in zip(axes, casts.items(), strict=True):
    scale = quantize(matrix, E4M3, block).spread_scale()  # each number's
    axis.imshow(scale.log2(), cmap="Greys")
    names = ("output", "input") if matrix is w else ("input", "token")
    axis.set(title=name, xlabel=names[0], ylabel=names[1])
    axis.set(xticks=[0, 128], yticks=[0, 128])
    axis.grid(False)
_ = figure.suptitle("Scales (darker: larger) follow the axis that is summed over")

# %% [markdown]
# In the forward product a token's row is cut in pieces; in the weight gradient each input's
# column is. A square is summed over in either direction and stays a square, so that one cast of
# the weights would do for both products. That speaks for squares, although strips would be finer.
#
# x must be tiled anew. Can one do that with the 8-bit codes that are there already, and save the
# trouble of keeping the original? **Predict** what happens to the error, under scales that are
# any number (`fp32`), and under scales that are powers of two (`pow2`).

# %%
for rule in ("fp32", "pow2"):
    forward = fake_quantize(x, E4M3, (1, 128), rule)
    afresh = fake_quantize(x, E4M3, (128, 1), rule)
    again = fake_quantize(forward, E4M3, (128, 1), rule)
    errors = [measure_error(q, x).relative for q in (afresh, again)]
    print(f"{rule}: error tiled afresh {errors[0]:.2%}, from codes {errors[1]:.2%}")
    if rule == "fp32":
        assert errors[1] > 1.2 * errors[0]  # rounded twice, wrong twice
    else:
        assert errors[1] < 1.001 * errors[0]  # nothing is left to be rounded

# %% [markdown]
# Rounding what was rounded under another scale loses twice. Powers of two do not touch the
# digits, only the exponent; so the second rounding finds numbers that have few digits already,
# and leaves them alone. (The price stands in the first column. With an ordinary scale the largest
# number of each tile is kept exactly; with a power of two it is rounded like the rest.) V3 uses
# such scales for some activations that it keeps in 8 bits and
# tiles anew (section 3.3.3). The package goes the other way, and rounds from the original
# each time.
#
# ### Exercise 2: the weight gradient
#
# Write `weight_gradient(x_TI, g_TO)` as V3's recipe has it: both operands in E4M3, with one scale
# for every 128 *tokens* of a column. `fake_quantize(x, E4M3, (rows, columns))` rounds under
# scales and multiplies by them again.


# %%
def weight_gradient(x_TI, g_TO):
    """dw_IO with both operands in 8 bits."""
    # your code here


# %%
check_weight_gradient(weight_gradient)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def weight_gradient(x_TI, g_TO):
#     x_TI = fake_quantize(x_TI, E4M3, (128, 1))
#     g_TO = fake_quantize(g_TO, E4M3, (128, 1))
#     return x_TI.mT @ g_TO
# ```
#
# </details>

# %% [markdown]
# This is the package's backward pass. `multiply` is given the two operands and how each is cast,
# and casts them along the axis that it is about to sum over. The letters are those of a matmul: K
# is summed over, `a_MK` is x, `b_KN` is w.

# %%
from minimoe.precision.matmul import _Matmul

print(inspect.getsource(_Matmul.backward))

# %% [markdown]
# ## Gradients are small
#
# Now to a real network on real text. We let one batch through a small GPT, a model that guesses
# the next byte of a text, in float32, listen at one of its layers, and look at the three kinds of
# numbers in it: activations x, weights w, gradients g.

# %%
from minimoe import GPT, ModelConfig, TrainConfig, load_corpus, train

corpus = load_corpus()  # text that every Python has; nothing is downloaded
config = ModelConfig(dim=128, n_layers=1, n_heads=2, context=64, hidden_dim=256)
torch.manual_seed(0)
model, seen = GPT(config), {}


def listen(layer, inputs, output):
    """Called by torch when ``layer`` has been computed."""
    seen["activations x"] = inputs[0].detach()
    output.register_hook(lambda gradient: seen.update({"gradients g": gradient}))


# %%
layer = model.blocks[0].feed_forward.up_proj
layer.register_forward_hook(listen)
batch = corpus.batch(seed=0, step=0, size=8, context=64)
logits, _ = model(batch.tokens_BL)
F.cross_entropy(logits.flatten(0, 1), batch.targets_BL.flatten()).backward()
seen["weights w"] = layer.weight.detach()
print({name: tuple(tensor.shape) for name, tensor in seen.items()})

# %% [markdown]
# **Predict:** cast to E4M3 without any scale, which share of each will become zero? And with V3's
# tiles? (A hint: the loss is a *mean* over the tokens of the batch, so each token's gradient is
# divided by their number.)

# %%
lost = {}
for name, tensor in seen.items():
    numbers = tensor.flatten(0, -2)
    plain = fake_quantize(numbers, E4M3, None, "none")
    tiled = fake_quantize(numbers, E4M3, (1, 128))
    zeros = [((q == 0) & (numbers != 0)).double().mean().item() for q in (plain, tiled)]
    print(f"{name:>13}: zero without a scale {zeros[0]:7.2%}, in tiles {zeros[1]:.2%}")
    lost[name] = zeros
share = 1 / batch.tokens_BL.numel()
print(f"1 / tokens: {share:.4f}; the smallest number: {E4M3.min_subnormal:.4f}")
assert lost["gradients g"][0] > 0.99
assert lost["gradients g"][1] < 0.01
assert max(lost["activations x"][0], lost["weights w"][0]) < 0.1

# %%
figure, axis = plt.subplots()
styles = {"activations x": "-", "weights w": "--", "gradients g": "-."}
for name, tensor in seen.items():
    sizes = tensor.abs()[tensor != 0].log2()
    share = torch.histc(sizes, bins=90, min=-30, max=15) / sizes.numel()
    middles = torch.arange(-29.75, 15, 0.5)
    axis.plot(middles, 100 * share, styles[name], marker="", label=name)
low, high = math.log2(E4M3.min_subnormal) - 1, math.log2(E4M3.max)
axis.axvspan(low, high, color="#dddddd", zorder=0)
axis.text((low + high) / 2, 18, "kept by E4M3 without a scale", ha="center")
axis.set(xlabel="log₂ of a number's size", ylabel="% of numbers in each half doubling")
axis.set(ylim=(0, 20), title="The gradients lie outside the reach of eight bits")
_ = axis.legend(loc="upper left")

# %% [markdown]
# The activations and weights happen to fit. The gradients do not: division by the number of
# tokens alone brings them to the lower end of E4M3, and the network's layers do the rest. With a
# scale nothing of this matters, for it is their *relative* sizes that count then.
#
# Ours is a small batch. V3's batches grew to 15,360 sequences of 4,096 tokens (section 4.2).
# There the same division makes gradients a hundred thousand times smaller still.
#
# The older remedy, from training in 16 bits, is to multiply the *loss* by a large factor. All
# gradients grow with it (double the loss, and every gradient doubles), and at the end the
# weights' gradients are divided by it again. The factor must not be too large, or the largest
# overflow.
#
# ### Exercise 3: a factor for the loss
#
# Write `loss_factor(g)`: the largest power of two by which the loss can be multiplied so that no
# gradient exceeds 448. (`math.frexp(y)[1] - 1` is the exponent of the power of two at or below
# y, as in tutorial 1.)


# %%
def loss_factor(g):
    """The largest power of two with |g| * factor <= 448 throughout: a float."""
    # your code here


# %%
check_loss_factor(loss_factor)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def loss_factor(g):
#     room = 448 / g.abs().max().item()
#     return 2.0 ** (math.frexp(room)[1] - 1)
# ```
#
# </details>

# %% [markdown]
# One does not have to wish for unscaled gradients to get them. In torch it is enough to write a
# cast that looks harmless. **Predict** the gradient of x below; its numbers are all 1, which
# E4M3 has.

# %%
x = torch.ones(3, requires_grad=True)
y = x.to(torch.float8_e4m3fn).float()  # 8 bits and back: nothing is lost
y.backward(torch.tensor([0.3, 1e-3, 1e-4]))
print("sent back: [0.3, 0.001, 0.0001], arrived:", x.grad.tolist())
assert x.grad[2] == 0  # torch sends the gradient through the same cast, without a scale

# %% [markdown]
# The first is merely rounded. The second has nearly doubled, because the smallest number there is
# was the nearest. The third is gone.
#
# ## The race
#
# Now we train the same small GPT three times: in float32 (`full`), with V3's recipe, and naively,
# in E4M3 without any scale. All three begin with the same weights and read the same batches, so
# that only the arithmetic differs. And we do it with three seeds, because one proves nothing. The
# loss is measured on text that was not trained on, in bits a byte (8 for who knows nothing; fewer
# are better).
#
# **Predict**, for both 8-bit runs, by how many per cent the loss will be higher than float32's.
# And whether you will be able to see 0.25 %.

# %%
how = TrainConfig(steps=60, batch_size=8, lr=2e-3, warmup=10, schedule="constant")
how = replace(how, average=0.1, eval_every=20, eval_sequences=16)
seeds = (0, 1, 2)


def curve(precision, seed):
    """Bits per byte after every 20 steps."""
    torch.manual_seed(seed)  # the same weights, whatever the precision
    model = GPT(replace(config, precision=precision))
    return [e.bits_per_byte for e in train(model, corpus, replace(how, seed=seed))]


recipes = ("full", "deepseek-v3", "naive")
curves = {recipe: torch.tensor([curve(recipe, s) for s in seeds]) for recipe in recipes}

# %%
figure, axis = plt.subplots()
steps = range(20, how.steps + 1, 20)
colors = {"full": "black", "deepseek-v3": "#0072b2", "naive": "#d55e00"}
marks = {"full": "o-", "deepseek-v3": "s--", "naive": "v:"}
for name, losses in curves.items():
    axis.plot(steps, losses.T, "-", marker="", color=colors[name], linewidth=0.5)
    label = f"{name}, mean of seeds"
    axis.plot(steps, losses.mean(0), marks[name], color=colors[name], label=label)
axis.set(xlabel="optimizer steps", ylabel="validation loss, bits a byte", xticks=steps)
axis.set_title("V3's recipe goes along with float32; naive 8 bits hardly learn")
axis.legend()
apart = (curves["deepseek-v3"] - curves["full"])[:, -1].abs().mean()
assert apart < curves["full"][:, -1].std()  # recipes differ less than seeds do

# %% [markdown]
# ## What may be concluded
#
# The thin lines, one a seed, lie farther apart than float32 and V3's recipe. So we compare within
# each seed: the gap in per cent, once for each, then the mean and the spread of the three gaps.
# From the spread follows how far the mean of three can be trusted: for three values, the true gap
# lies within 2.5 standard deviations of their mean, with 95 % confidence. (Where
# the 2.5 comes from, tutorial 8 tells: 4.30 / √3. It takes the gaps to be spread normally.)


# %%
def report(name, losses):
    """Print the gaps to float32 in per cent; return their mean and the uncertainty."""
    gaps = 100 * (losses[:, -1] / curves["full"][:, -1] - 1)
    mean, spread = gaps.mean().item(), gaps.std().item()
    shown = ", ".join(f"{gap:+.2f}" for gap in gaps)
    print(f"{name:>11}: gaps {shown} %; mean {mean:+.2f} % ± {2.48 * spread:.2f} %")
    return mean, 2.48 * spread


v3, naive = (report(name, curves[name]) for name in ("deepseek-v3", "naive"))
assert abs(v3[0]) < 2  # a wide margin: the digits are the machine's own
assert naive[0] > 8
least, most = v3[0] - v3[1], v3[0] + v3[1]
told = "below" if most < 0.25 else "above" if least > 0.25 else "perhaps below, perhaps above"
print(f"V3's gap lies between {least:+.2f} and {most:+.2f} % here: {told} 0.25 %")

# %% [markdown]
# The naive run is out of the race, whatever the seed; three seeds are plenty to say that. For
# V3's recipe read the last line, because it depends on your machine. If it says "perhaps", the
# seeds differ too much for so small a gap. If it says "below", V3's figure holds for *this* race;
# if "above", this race contradicts it.
# But the race is short, and what small errors do to a model has hardly had the time to show.
#
# The repository keeps the record of a longer one, with a larger model
# (`minimoe experiment fp8-training --size long`).
# **Predict:** are three seeds enough to prove 0.25 % there?

# %%
import json
from pathlib import Path

record = json.loads(Path("../docs/results/fp8-training.json").read_text())["detail"]
last = {}
for name in recipes:
    longer = record["curves"]["dense"]["float32" if name == "full" else name]
    last[name] = torch.tensor([curve[-1] for curve in longer])

# %%
for name in recipes[1:]:
    gaps = 100 * (last[name] / last["full"] - 1)
    mean, spread = gaps.mean().item(), gaps.std().item()
    about = f"{mean:+6.2f} % ± {2.48 * spread:.2f} %"
    bits = f"{last[name].mean():.2f} bits, float32 {last['full'].mean():.2f}"
    print(f"{name:>11}, {record['steps'][-1]} steps: {about} ({bits})")
    assert (abs(mean) < 0.25) == (name == "deepseek-v3")
    assert name == "deepseek-v3" or mean > naive[0]
    assert 2.48 * spread > 0.25  # a gap of this size would not be seen

# %% [markdown]
# The mean gap of V3's recipe is below a quarter of a per cent there, but the uncertainty is above
# it: rounding moves the result of each seed a little, up or down. Three seeds do not *prove*
# 0.25 %. "Consistent with V3's claim" is what may be said, and what an honest newspaper would
# print. The naive gap is far wider in this longer race: float32 has learnt much more meanwhile,
# and naive eight bits little.
#
# ## What naive training does, and why
#
# The naive model did learn something. What? We compare the gradients of its weights, at the very
# first step, with float32's. An error of 1 means that nothing of the gradient has arrived.
#
# **Predict** which of the matrices get a gradient at all. The embedding, which is also the output
# matrix, is not in eight bits.


# %%
def weight_gradients(precision):
    """The gradient of each matrix at the first step."""
    torch.manual_seed(0)
    model = GPT(replace(config, precision=precision))
    logits, _ = model(batch.tokens_BL)
    F.cross_entropy(logits.flatten(0, 1), batch.targets_BL.flatten()).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.ndim == 2}


exact = weight_gradients("full")
wrong = {}
for recipe in recipes[1:]:
    found = weight_gradients(recipe)
    wrong[recipe] = {n: measure_error(found[n], exact[n]).relative for n in exact}

# %%
figure, axis = plt.subplots()
names = [name.removesuffix(".weight").split(".")[-1] for name in exact]
places = torch.arange(len(names))
for i, (recipe, errors) in enumerate(wrong.items()):
    axis.bar(places + 0.4 * i - 0.2, list(errors.values()), 0.36, label=recipe)
axis.axhline(1, color="black", linestyle=":", marker="", linewidth=1)
axis.set_xticks(places, names)
axis.set(xlabel="matrix", ylabel="error of its gradient\n(1: nothing of it arrives)")
axis.set_title("Without scales much of the gradient never arrives")
_ = axis.legend(loc=(0.01, 0.62))

# %%
lost = {n.split(".")[-2]: f"{error:.0%}" for n, error in wrong["naive"].items()}
print("naive, error of the gradient:", lost)
behind = [n for n in exact if "qkv" in n or "gate" in n or "up_proj" in n]
assert all(wrong["naive"][n] > 0.9 for n in behind)
assert min(wrong["naive"].values()) > 0.3
assert max(wrong["deepseek-v3"].values()) < 0.2

# %% [markdown]
# Three matrices get nothing: those whose gradient must come through another 8-bit matrix first,
# on its way back from the loss. Each passage makes it smaller. `out_proj` and `down_proj` get a
# part, because what they compute is added to a stream that runs straight on to the output matrix,
# which is not in eight bits. The embedding gets a part, too.
#
# With so little, the model can learn hardly more than which bytes are frequent. How much is that
# worth? Theory has the answer: who knows only the frequencies p of the bytes needs −log₂ p bits
# for each. We count them.

# %%
counts = sum(torch.bincount(torch.tensor(t), minlength=256) for t in corpus.train) + 1
bits = -(counts / counts.sum()).log2()
frequencies = sum(bits[torch.tensor(v).long()].mean() for v in corpus.validation) / 4
final = {name: losses[:, -1].mean().item() for name, losses in curves.items()}
print(f"frequencies alone: {frequencies:.2f} bits a byte; naive {final['naive']:.2f}")
print(f"V3's recipe: {final['deepseek-v3']:.2f}; float32: {final['full']:.2f}")
assert abs(final["naive"] / frequencies - 1) < 0.1
assert final["deepseek-v3"] < 0.9 * frequencies

# %% [markdown]
# ## Is it only underflow?
#
# If small gradients are all that is wrong, then the older remedy ought to mend the naive run:
# the same unscaled E4M3, but with the loss multiplied by a power of two. The trainer has a method
# for what is minimised, which we replace. (It also limits the length of the gradient, and that
# limit grows with the factor.) We take 2¹⁴.
#
# **Predict:** will it be as good as V3's recipe, better than naive, or no good?

# %%
FACTOR = 2.0**14
largest = seen["gradients g"].abs().max()
print(f"the largest gradient that we heard, times the factor: {FACTOR * largest:.1f}")
assert FACTOR * largest < E4M3.max  # room for other layers and later steps

# %%
from minimoe.training.trainer import Trainer


class Louder(Trainer):
    def objective(self, logits_BLV, batch, micro, loss):
        return FACTOR * loss


def louder(seed):
    torch.manual_seed(seed)
    model = GPT(replace(config, precision="naive"))
    trainer = Louder(model, corpus, replace(how, seed=seed, clip=how.clip * FACTOR))
    for _ in range(how.steps):
        trainer.train_step()
    return [trainer.evaluate().bits_per_byte]


# %%
loud = report("louder", torch.tensor([louder(seed) for seed in seeds]))
print(f"before: naive {naive[0]:+.1f} %, V3's recipe {v3[0]:+.1f} %")
assert abs(loud[0]) < 2 < naive[0]  # one factor has mended it

# %% [markdown]
# At this size one number mends it. So the damage was underflow, all of it, as far as three seeds
# can tell; and V3's tiles are not what *this* small model needed. One good factor would have
# done. It must be said, because it is measured.
#
# What then are the tiles for? The factor had to be chosen by somebody who had looked at the
# gradients, and it is one for all layers and for the whole of the training. In a deep model the
# layers' gradients differ more, they change as it learns, and outliers take up the range that is
# left (tutorial 1); we have not measured these here. In a training of two months nobody wants to
# sit and watch a factor. The tiles find one for every 128 numbers, at every step, from the
# numbers themselves.
#
# ## What this leaves out
#
# - Speed. Here eight bits are emulated, exactly but slowly. That they are *faster* takes a chip
#   that multiplies them; `minimoe bench` measures what yours does.
# - The tensor core's short sums. Here all sums were kept in float32;
#   `recipe.with_(accumulator=…)` trains with those of tutorial 2, for the patient.
# - What V3 keeps in eight bits besides: activations waiting for the backward pass, and those on
#   their way to the experts. That saves memory and travel, not arithmetic.
# - Mixtures, where a rounding can send a token to another expert, so that chance alone makes a
#   gap as large as eight bits do (the table of [FP8 training](../docs/results/fp8-training.md)
#   has a `perturbed` run that shows it).
# - Size. V3 is millions of times larger, and was trained for two months instead of seconds.
#
# Read next: section 3.3 of the DeepSeek-V3 report (arXiv 2412.19437), which should hold few
# surprises any more, and its appendix B.2, where squares of 128×128 for gradients too made a
# training diverge.
