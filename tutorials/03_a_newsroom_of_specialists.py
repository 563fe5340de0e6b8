# %% [markdown]
# # 3. *A newsroom of specialists*
#
# After this you will be able to write a mixture of experts with your own hands, to say
# what the generalist in it does and what it does not do, and to measure, instead of
# believing, what the specialists are specialists in. It needs forty minutes and some
# Python; the tutorials on decimals before it are not needed.
#
# In February 2025 the newspapers explained how DeepSeek got so much out of so few chips.
# Its model is not one big network but many small ones: one for poetry, say, one for
# programming, one for biology, one for physics. Only a few of them work on any question.
# And with the specialists sits a generalist, "like an editor overseeing a newsroom of
# specialists".
#
# We shall build that newsroom, from a loop of five lines to the layer that this package
# trains with. Then we train one on real text and look over the specialists' shoulders.
# Some of the story will be left standing.

# %%
import inspect
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from checks.tutorial_03 import check_editor, check_information, check_weights
from plot_style import plt

torch.manual_seed(0)
torch.set_num_threads(1)  # matrices as small as ours gain nothing from more

# %% [markdown]
# ## One specialist
#
# A language model reads text as a row of *tokens*: words, parts of words, or, as here,
# single letters. Inside the model each token is a list of D numbers, a vector, which says
# what the model has understood of it so far. Layer after layer changes that vector. One
# half of a layer, *attention*, lets tokens look at those before them. The other half, the
# *feed-forward* network, works on each token alone, and most of a big model's weights are
# in it. This second half is what a mixture of experts replaces.
#
# A feed-forward network is two matrices with a bend between them. The first makes 2H
# numbers of the token's D. Half of those go through `silu`, a soft switch that is near
# zero for negative numbers, and decide how much of the other half gets through. The
# second matrix makes D numbers of what got through. (The name is SwiGLU.) We take E such
# networks, our **experts**, each with matrices of its own.
#
# Names end in their dimensions here: `x_TD` has T rows, one a token, and D columns.

# %%
D, H = 16, 8  # width of a token's vector, and of an expert
E, K = 6, 2  # experts, and how many of them work on a token
first_EGD = torch.randn(E, 2 * H, D)  # G is 2H
second_EDH = torch.randn(E, D, H)


def expert(e, x_D):
    switch_H, through_H = (first_EGD[e] @ x_D).chunk(2)
    return second_EDH[e] @ (F.silu(switch_H) * through_H)


print(expert(0, torch.randn(D)).shape)

# %% [markdown]
# ## The one who hands out the work
#
# Somebody must decide who works on what. In a newsroom it is an editor who reads the
# story. Ours does not read; it is one more matrix, with a row for each expert. Row times
# token is a number, called a **logit**: the larger, the better the expert suits the
# token. The function *sigmoid* squeezes it to a **score** between 0 and 1. The K experts
# with the best scores get the token, and how much each will count, its **weight**, is its
# score divided by the sum of the scores picked. (DeepSeek-V3, arXiv 2412.19437, equations
# 12 to 15.) In the field our editor is called the **gate** or the **router**.

# %%
editor_ED = torch.randn(E, D) / D**0.5
x_D = torch.randn(D)
scores_E = torch.sigmoid(editor_ED @ x_D)
picked = scores_E.topk(K)
weights_K = picked.values / picked.values.sum()
print("scores ", [f"{s:.2f}" for s in scores_E.tolist()])
print("picked ", picked.indices.tolist(), "with weights", weights_K)
assert abs(weights_K.sum() - 1) < 1e-6

# %% [markdown]
# **Exercise 1.** Make a function of it that says how much *each* expert counts: a vector
# of E weights, 0 for those that are not asked. Write it so that it works for any logits
# and any k.


# %%
def editor(logits_E, k):
    """(E,) the weight of each expert for one token; 0 for those not picked."""
    return None


# %%
check_editor(editor)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def editor(logits_E, k):
#     picked = torch.sigmoid(logits_E).topk(k)
#     weights_E = torch.zeros(len(logits_E))
#     weights_E[picked.indices] = picked.values / picked.values.sum()
#     return weights_E
# ```
#
# </details>
#
# ## The newsroom, in a loop of five lines
#
# Now the whole layer: for each token ask the editor, ask the experts that were picked,
# and add up what they say, each with its weight.


# %%
def newsroom(x_TD):
    y_TD = torch.zeros_like(x_TD)
    for t, x_D in enumerate(x_TD):
        picked = torch.sigmoid(editor_ED @ x_D).topk(K)
        weights_K = picked.values / picked.values.sum()
        for weight, e in zip(weights_K, picked.indices, strict=True):
            y_TD[t] += weight * expert(e, x_D)
    return y_TD


x_TD = torch.randn(10, D)
y_TD = newsroom(x_TD)
print("ten tokens in,", len(y_TD), "out, each with", y_TD.shape[1], "numbers")

# %% [markdown]
# That is a mixture of experts. Most of what engineers have added to it since is for speed
# (tutorial 5) and for keeping every expert at work (tutorial 4). The package's layer,
# given our weights, says the same. It also returns its **routing**: who got what, which
# is what we shall look at.

# %%
from minimoe.moe import MoE

moe = MoE(D, H, E, K, n_shared=0)
with torch.no_grad():
    moe.gate.weight.copy_(editor_ED)
    moe.experts.gate_up_proj.copy_(first_EGD)
    moe.experts.down_proj.copy_(second_EDH)
    y_TD, routing = moe(x_TD)

torch.testing.assert_close(y_TD, newsroom(x_TD))  # the same numbers, up to rounding
print("the first token went to experts", routing.ids_TK[0].tolist())
print("with weights                   ", routing.weights_TK[0].tolist())
print("tokens that each expert got    ", routing.counts_E.tolist())

# %% [markdown]
# Your loop is not thrown away there. The package keeps it under the name `reference`, and
# holds every faster way of doing the same against it, in values and in gradients. (The
# `gate` in `gate_up` is the switch inside an expert, not the editor.)

# %%
from minimoe.moe.dispatch.reference import reference_experts

lines = inspect.getsource(reference_experts).splitlines()
print("\n".join(lines[5:12]))

# %% [markdown]
# ## What it saves
#
# An expert is two matrices, 2H by D and D by H: 3·D·H weights. All E experts must be
# *there*, in memory. But a token meets only K of them, and arithmetic is done only with
# weights that a token meets, the *active* ones. So a model can know a great deal and yet
# do little work on each token. That is the whole bargain: **memory is spent to save
# arithmetic.**
#
# (And here the newspaper's picture ends for the first time. No question goes to "the
# poetry expert". The choice is made anew for every single token, and in every layer.)

# %%
from minimoe.cost import PUBLISHED, count

v3 = PUBLISHED["deepseek-v3"]
weights = count(v3)  # from the published configuration
at_work = weights.active - weights.embedding  # of the input's table a token reads a row
mixtures = v3.n_layers - v3.first_dense
print(f"DeepSeek-V3: {mixtures} layers of {v3.n_experts} experts, {v3.top_k} a token")
print(f"{weights.total / 1e9:.1f} billion weights, of which", end=" ")
print(f"{at_work / 1e9:.1f} billion work on a token:", end=" ")
print(f"{at_work / weights.total:.1%}")
assert abs(weights.total / 671e9 - 1) < 0.02  # the report says 671 and 37 billion
assert abs(at_work / 37e9 - 1) < 0.02

# %% [markdown]
# ## The generalist
#
# DeepSeek's newsroom has one more desk. A **shared expert** works on every token,
# whatever the editor decides, and what it says is added at full weight:
#
# $$y = \text{shared}(x) + \sum_{\text{picked } i} w_i\,\text{expert}_i(x).$$
#
# Why? Much of what there is to know about a token is the same everywhere: that a letter
# often follows a space, say. Without a generalist every specialist must learn that once
# more. With one they are free for what is particular. So argues the paper that introduced
# it (DeepSeekMoE, arXiv 2401.06066, section 3.2).
#
# (The picture ends a second time. The newspapers put the generalist into the editor's
# chair. These are two different things. The shared expert oversees nobody and coordinates
# nothing: it does not know what the others say. And the gate, which does hand out the
# work, writes nothing itself.)

# %%
moe = MoE(D, H, E, K)  # with one shared expert, unless told otherwise
with torch.no_grad():
    y_TD, routing = moe(x_TD)
    specialists_TD = moe.experts(x_TD, routing)
    generalist_TD = moe.shared_experts(x_TD)
torch.testing.assert_close(y_TD, generalist_TD + specialists_TD)
print(inspect.getsource(type(moe.shared_experts).forward))

# %% [markdown]
# **Exercise 2.** Count. Given the sizes, how many weights has such a layer, and how many
# of them work on one token? Think of the experts, of the generalist (as many shared
# experts as `shared` says, each as wide as the others) and of the editor.


# %%
def count_weights(D, H, E, K, shared):
    """(all weights of the layer, those that work on one token)"""
    return None


# %%
check_weights(count_weights)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def count_weights(D, H, E, K, shared):
#     one, gate = 3 * D * H, E * D
#     return gate + (E + shared) * one, gate + (K + shared) * one
# ```
#
# </details>
#
# ## A real one, on real text
#
# Enough of random numbers. The package finds text on your machine, four fields of it: the
# source code of Python's library, texts about physics and about graph theory (the
# documentation of two Python packages), and Python's reference manual in plain English.
# They are closer relatives than poetry and physics would be; keep that in mind below. No
# poetry and no biology today, though the two can be had (`minimoe compare --data
# article`).

# %%
from minimoe import GPT, ModelConfig, TrainConfig, load_corpus, train

corpus = load_corpus()
for field, text in zip(corpus.domains, corpus.validation, strict=True):
    print(f"{field:12}", repr(bytes(text[2000:2060]).decode(errors="replace")))

# %% [markdown]
# The model is tiny: two layers, each with sixteen experts, two of them a token, and a
# generalist. It reads bytes, so its tokens are letters, and it learns to guess the next
# one. How well it does is measured in *bits per byte*: who knows nothing needs 8 bits for
# every byte; the fewer the better.
#
# `train` trains it, which takes some seconds. (Something must keep all the experts busy
# meanwhile. Here it is what V3 does, and tutorial 4 explains it.)


# %%
small = ModelConfig(
    dim=64, n_layers=2, n_heads=2, context=64, n_experts=16, top_k=2, expert_dim=32
)  # fmt: skip
how = TrainConfig(
    steps=400, eval_every=400, batch_size=8, lr=4e-3, warmup=20, balance_speed=2e-3
)  # fmt: skip


def make(config):
    torch.manual_seed(0)  # so that two of the same size begin alike
    return GPT(config)


untrained, model = make(small), make(small)
learnt = train(model, corpus, how)[-1].bits_per_byte
print(f"{learnt:.2f} bits per byte after {how.steps} steps")
assert learnt < 4  # before it begins it needs about 8

# %% [markdown]
# It is a beginner, and stays one; a longer training is for a longer evening. Now let it
# read text that it has not seen, 64 pieces from each field, and keep what the editor of
# each layer decides.


# %%
def read(model):
    """Bytes (S, L) of S pieces, their fields (S,), and the routing of each layer."""
    batches = list(corpus.validation_batches(context=64, per_domain=64, size=64))
    tokens_SL = torch.cat([batch.tokens_BL for batch in batches])
    fields_S = torch.cat([batch.domains_B for batch in batches])
    with torch.no_grad():
        _, routings = model(tokens_SL)
    return tokens_SL, fields_S, routings


tokens_SL, fields_S, routings = read(model)
S, L = tokens_SL.shape
print(S, "pieces of", L, "bytes; experts of the first:", routings[1].ids_TK[:5].tolist())

# %% [markdown]
# ## Which field does an expert serve?
#
# **Before you run the next cell, predict.** Each field has a quarter of the text. If the
# editor ignored fields, a quarter of each expert's tokens would be from each. If the
# experts were as the newspapers say, an expert's favourite field would have nearly all of
# its tokens. What will the favourite field's share be, for a typical one of our experts?
# Write it down.
#
# We need something to compare with, because even an editor who throws dice will give some
# expert a little more of one field by luck. So we also deal the four fields out to the
# pieces at random, as one deals cards, and look what favourites come out of that.

# %%
from minimoe.moe import count_by


def table(routing, fields_S):
    """(fields, E): how often tokens of each field went to each expert."""
    return count_by(fields_S.repeat_interleave(L), routing, len(corpus.domains)).numpy()


def favourites(counts_FE):
    """(E,) rising: the share of an expert's tokens that its favourite field has."""
    return np.sort(counts_FE.max(0) / counts_FE.sum(0))


deal = torch.Generator().manual_seed(0)
dealt = [fields_S[torch.randperm(S, generator=deal)] for _ in range(200)]

# %%
figure, axes = plt.subplots(1, 2, sharey=True)
rank = range(1, 17)
for layer, axis in enumerate(axes):
    chance = [favourites(table(routings[layer], fields)) for fields in dealt]
    real = favourites(table(routings[layer], fields_S))
    axis.plot(rank, 100 * real, linestyle="none", label="measured")
    axis.plot(rank, 100 * np.mean(chance, 0), marker="", label="fields dealt at random")
    axis.axhline(25, color="black", linestyle=":", label="no favourite")
    axis.axhspan(85, 100, color="#dddddd", label="as the newspapers have it")
    axis.set(xlabel=f"experts of layer {layer + 1}, in rising order", ylim=(0, 100))
    axis.set_xticks([1, 6, 11, 16])
axes[0].set_ylabel("share of the favourite field, %")
axes[1].legend(loc=(0.05, 0.45))
_ = figure.suptitle("An expert's favourite field has little more than its quarter")

# %% [markdown]
# The dots lie a little above the dashes: there *is* something, and it is not luck. But it
# is small. On the average:

# %%
for layer, routing in enumerate(routings):
    counts_FE = table(routing, fields_S)
    share = counts_FE.max(0).sum() / counts_FE.sum()
    lucky = np.mean([table(routing, f).max(0).sum() for f in dealt]) / counts_FE.sum()
    print(f"layer {layer + 1}: favourites have {share:.1%}, by luck {lucky:.1%}")
    # More than by luck, and far from most of the tokens.
    assert lucky < share < 0.5

# %% [markdown]
# No physics desk, no programming desk. What do they do all day, then?
#
# ## What goes where
#
# Look at the letters instead. Below are the six experts of the second layer with the
# narrowest diet, the six letters that each gets most, and how much of its diet these are.
# (A blank is `' '`, and the end of a line is `'\n'`.)

# %%
from minimoe.moe import top_tokens

routing = routings[1]
letters_VE = count_by(tokens_SL.flatten(), routing, 256)  # which byte went to whom
favourite_En, times_En = top_tokens(letters_VE, 6)
narrow = (times_En.sum(1) / letters_VE.sum(0)).argsort(descending=True)
for e in narrow[:6].tolist():
    letters = [repr(chr(b)) for b in favourite_En[e]]
    share = times_En[e].sum() / letters_VE[:, e].sum()
    print(f"expert {e:2}: {share:4.0%} of its tokens are one of", *letters)
all_V = letters_VE.sum(1)
usual, here = all_V.topk(6).values.sum() / all_V.sum(), times_En.sum() / all_V.sum()
print(f"an expert's six make {here:.0%} of what it gets, on the average;", end=" ")
print(f"the six commonest of all make {usual:.0%} of the text")
assert here > 1.2 * usual  # by luck they would be alike

# %% [markdown]
# And here are some pieces of text as the first two of them see it. What went to the
# expert is white on black.


# %%
def page(axis, lines, e):
    """Some pieces of text; what expert e got is white on black."""
    got_TE = F.one_hot(routing.ids_TK, 16).sum(1)
    got = got_TE.view(S, L, 16)[lines, :48, e]  # as much as fits the page
    axis.imshow(got, cmap="Greys", aspect="auto")
    for (row, place), byte in np.ndenumerate(tokens_SL[lines, :48].numpy()):
        sign = chr(byte) if 32 < byte < 127 else "¶" if byte == 10 else ""
        color = "white" if got[row, place] else "black"
        axis.text(place, row, sign, color=color, size=9, ha="center", va="center")
    axis.set(title=f"expert {e}", yticks=[], ylabel="pieces of text")
    axis.grid(False)


# %%
figure, axes = plt.subplots(2, 1, figsize=(7.6, 4.2), sharex=True)
lines = [6, 70, 71, 134, 198, 199]  # of all four fields
for axis, e in zip(axes, narrow[:2].tolist(), strict=True):
    page(axis, lines, e)
axes[1].set_xlabel("place in the piece, bytes (¶: end of a line; blanks are blank)")
_ = figure.suptitle("The specialists of layer 2 are specialists in letters")

# %% [markdown]
# An expert's speciality is a kind of *letter*, and what stands around it: blanks behind a
# word, say, or vowels, or the beginnings of words. (Which desk has which differs from
# machine to machine.) What the text is about hardly matters. It is no oddity of small
# models: when Mixtral's authors looked at theirs, they saw no pattern by topic either,
# but one by syntax (arXiv 2401.04088, section 5).
#
# ## In bits
#
# Shares of favourites are a rough measure. There is a finer one. Suppose you are told one
# of the two experts that a token went to; how much better can you then guess its field?
# Information theory counts that in bits, and calls it the **mutual information**. From a
# table of counts, made into shares p by dividing by the sum of all:
#
# $$I = \sum_{\text{field},\,\text{expert}} p(f, e)\;\log_2\frac{p(f, e)}{p(f)\,p(e)},$$
#
# where p(f) is the sum of a row and p(e) that of a column. If the field makes no
# difference, every fraction is 1 and I is 0. To know which of four equally long fields it
# is takes 2 bits, so 2 is the most there could be.
#
# **Exercise 3.** Write it for a numpy table. Mind the empty cells: they count 0.


# %%
def information(counts_FE):
    """Bits that the expert's number tells of the field, a float."""
    return None


# %%
check_information(information)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def information(counts_FE):
#     p = counts_FE / counts_FE.sum()
#     apart = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
#     there = p > 0
#     return float((p[there] * np.log2(p[there] / apart[there])).sum())
# ```
#
# </details>
#
# The same formula, with letters in place of fields, says how much the expert's number
# tells about the letter. **Predict:** of the 2 bits about the field, how much does the
# expert's number tell? Of the bits about the letter, how many per cent? And what would an
# *untrained* model tell, whose editor has never seen a text?

# %%
from minimoe.experiments.specialization import mutual_information


def told(model):
    """Of each layer, bits about the field, about it by luck, and about the letter."""
    _, _, routings = read(model)
    for r in routings:
        lucky = [mutual_information(table(r, fields)) for fields in dealt]
        letters = count_by(tokens_SL.flatten(), r, 256).numpy()
        field = mutual_information(table(r, fields_S))
        # Of a hundred dealings 99 stay below the second number.
        yield field, np.quantile(lucky, 0.99), mutual_information(letters)


# %%
before, after = list(told(untrained)), list(told(model))
for name, found in (("untrained", before), ("trained", after)):
    for layer, row in enumerate(found):
        field, luck, letter = row
        print(f"{name:9} layer {layer + 1}: about the field {field:.4f} bits", end=" ")
        print(f"(luck: {luck:.4f}), about the letter {letter:.2f}")

# %% [markdown]
# Two more numbers, to have something to hold these against: how many bits there are to be
# told about a letter, and what the *letter itself*, without any expert, tells of the
# field. (A brace or an underscore smells of programming.)

# %%
fields_T = fields_S.repeat_interleave(L)
letters_FV = np.zeros((len(corpus.domains), 256))
np.add.at(letters_FV, (fields_T.numpy(), tokens_SL.flatten().numpy()), 1)
p = letters_FV.sum(0) / letters_FV.sum()
most = {"field": 2.0, "letter": -(p[p > 0] * np.log2(p[p > 0])).sum()}
from_letter = mutual_information(letters_FV)
print(f"to be told about a letter: {most['letter']:.2f} bits")
print(f"a letter alone tells {from_letter:.3f} bits of the field")
for field, luck, letter in after:
    assert luck < field < 0.1 * most["field"]  # more than luck, and very little
    # Letters are what it is about.
    assert letter / most["letter"] > 5 * field / most["field"]
assert from_letter > max(field for field, _, _ in after)
assert all(a[2] > b[2] for a, b in zip(after, before, strict=True))  # training adds

# %%
bars = {}
for layer in (0, 1):
    for what, place in (("letter", 2), ("field", 0)):
        shares = [100 * found[layer][place] / most[what] for found in (before, after)]
        bars[f"about the {what}, layer {layer + 1}"] = shares

# %%
figure, axis = plt.subplots(figsize=(7, 2.8))
for row, name in enumerate(sorted(bars)):
    untaught, taught = bars[name]
    axis.barh(row, taught, 0.5, color="#0072b2", label=None if row else "trained")
    axis.plot(untaught, row, "D", color="black", label=None if row else "untrained")
    axis.text(max(taught, untaught) + 1, row, f"{taught:.1f} %", va="center")
axis.set(yticks=range(len(bars)), yticklabels=sorted(bars), xlim=(0, 60))
axis.set(title="An expert's number gives away letters, hardly fields")
axis.set_xlabel("of all there is to be told, %")
_ = figure.legend(loc="outside lower center", ncols=2)

# %% [markdown]
# Three things to take home.
#
# - About the field an expert's number tells next to nothing of what there is to be told:
#   more than luck, but less than the letter alone gives away.
# - About the letter it tells a good part. *That* is the speciality.
# - Much of that was there before any training (the black mark). A matrix of random
#   numbers already sends equal letters to equal desks, because their vectors are much the
#   same. Training made it more; it did not begin it.
#
# So is the newspaper wrong? At this size, yes. Larger models, trained for longer on texts
# that differ more, can show more of it: the authors of OLMoE find some experts that do
# prefer a field, beside others for certain kinds of words (arXiv 2409.02060, section 5),
# and V3's report shows experts of two models with 16 billion weights that are differently
# busy with different sources of text (section 4.5.3). But nobody *tells* an expert what
# to be expert in. It takes what lowers the error, and for a beginner that is letters.
#
# ## Is the generalist the trick?
#
# Two experiments. First: take the trained model and send the generalist home. To be fair,
# compare it with sending home one *specialist* of every token's two: as many weights
# fewer at work. **Predict** which hurts more, and by how much. In bits per byte:

# %%
from minimoe.training.trainer import Trainer

inspector = Trainer(model, corpus, how)
desks = [block.feed_forward for block in model.blocks]
for desk in desks:
    desk.gate.top_k = 1  # one specialist a token instead of two
without_one = inspector.evaluate().bits_per_byte
for desk in desks:
    desk.gate.top_k, desk.shared_experts = 2, None  # no generalist
without_it = inspector.evaluate().bits_per_byte
print(f"all at work {learnt:.2f}, one specialist fewer {without_one:.2f}, "
      f"no generalist {without_it:.2f}")  # fmt: skip
assert learnt < without_one < without_it

# %% [markdown]
# The model leans on its generalist heavily. DeepSeek found the like in a model of two
# billion weights: with the shared expert switched off, and one more specialist asked in
# its stead, the loss rose from 1.808 to 2.414 (DeepSeekMoE, section 4.5).
#
# But that only says that a team misses the member it was trained with. The second
# experiment asks whether the team would have been worse *without it from the beginning*:
# no generalist, three specialists a token instead of two, so that just as many weights
# work on each token. **Predict** again.

# %%
alone = make(replace(small, n_shared=0, top_k=3))
never_had_one = train(alone, corpus, how)[-1].bits_per_byte
print(f"with a generalist {learnt:.2f}", end=", ")
print(f"with one more specialist instead {never_had_one:.2f}")
# One training each: a few hundredths may be luck. A large difference would not be.
assert abs(never_had_one - learnt) < 0.15 < without_it - learnt

# %% [markdown]
# Hardly a difference, and one *seed* (one set of random first weights) cannot say whether
# it is more than luck. Nor do the papers agree: DeepSeekMoE trained both and found the
# shared expert better in most of its tests (section 4.4); OLMoE tried one, found the
# model slightly worse for it, and left it out (section 4.1). `minimoe claims` makes this
# experiment with three seeds and prints the spread. The generalist may be a good idea.
# That it is *the trick* is more than we can confirm.
#
# What *is* the trick, then, if not knowledge sorted by field? The bargain from above: a
# great many weights in memory, few at work. Tutorial 6 measures what that is worth.
#
# ## What this leaves out
#
# - How all the experts are kept at work, which does not happen by itself: tutorial 4.
#   What it takes to do this fast, and on many machines: tutorial 5.
# - Other editors: Mixtral's softmax over the picked logits, experts that choose their
#   tokens, noise, groups. All are in `minimoe/moe/router.py`, with the papers' names.
# - Fine experts against coarse ones. That DeepSeek cuts its experts small and asks many
#   of them is an idea of its own (DeepSeekMoE, section 3.1).
# - Models large enough to have desks for fields.
#
# Read next: DeepSeekMoE, arXiv 2401.06066, section 3, and for what experts of a larger
# model do, OLMoE, arXiv 2409.02060, section 5.
