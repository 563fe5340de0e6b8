# %% [markdown]
# # 9. *The bill*
#
# After this you will be able to rebuild from a published configuration what a newspaper says of
# a model: its parameters, its card hours and its dollars; to say what makes one model cheaper
# than another; and to name what no such bill contains.
#
# *About 35 minutes. Nothing is trained. Tutorial 3 says what an expert and a router are; tutorial
# 1 helps with what eight bits are. Multiplication does the rest.*
#
# About six million dollars and some 2,000 chips, wrote the New York Times in January and
# February 2025, and a tenth of what Meta had spent. The figures come from DeepSeek's own report
# (arXiv 2412.19437, its abstract and table 1):
#
# - **671 billion** parameters, of which **37 billion** work on a token;
# - **2.788 million** card hours, at 2 dollars each: **5.576 million** dollars.
#
# Nobody outside has seen the invoices. But the configuration is public, a dozen numbers in a
# file, and so is the arithmetic that follows from it. A bookkeeper does not ask whether a sum
# is astonishing. He adds it up again.

# %%
from inspect import getsource

from checks.tutorial_09 import check_cards, check_dollars, check_mixture, check_operations
from plot_style import plt

from minimoe.cost import PUBLISHED, count

million, billion, trillion = 1e6, 1e9, 1e12
v3 = PUBLISHED["deepseek-v3"]
print(v3.source)

# %% [markdown]
# ## One desk in the newsroom
#
# A language model is a stack of layers. Each has two parts: an *attention*, where a token looks
# back at those before it, and a *feed-forward* part, where it is worked on by itself. In
# DeepSeek-V3 the second part is a newsroom of experts in all layers but the lowest three.
# Between the parts a token is a row of 7168 numbers, the model's *width*.
#
# These are the sizes, typed from the report (its section 4.2), and compared with what the
# package has.

# %%
dim, layers, first_dense, vocabulary = 7168, 61, 3, 129_280
experts, chosen, shared, expert_width, dense_width = 256, 8, 1, 2048, 18_432
mixtures = layers - first_dense  # the layers that have experts

assert (dim, layers, first_dense) == (v3.dim, v3.n_layers, v3.first_dense)
assert (experts, chosen, shared) == (v3.n_experts, v3.top_k, v3.n_shared)
assert (vocabulary, expert_width) == (v3.vocab_size, v3.expert_dim)
assert dense_width == v3.hidden_dim

# %% [markdown]
# A *parameter* is one number of a matrix. An expert has three matrices, *gate*, *up* and *down*:
# two lead from the model's width to the expert's own, the third leads back. (Tutorial 3 laid the
# first two into one matrix. This *gate* is the switch inside an expert; who chooses among experts
# is called the router here.) So its parameters are 3 × 7168 × 2048.
#
# **Before you run the next cell:** guess two numbers and write them down. How many experts sit
# in the whole model? And what share of the 671 billion are they?

# %%
expert = 3 * dim * expert_width
desks = mixtures * experts
published = 671 * billion
print(f"one expert: {expert:,} parameters")
print(f"{desks:,} of them in {mixtures} layers: {desks * expert / billion:.1f} billion")
print(f"that is {desks * expert / published:.1%} of the published total")
assert desks * expert > 0.95 * published  # the model is its experts

# %% [markdown]
# Nearly the whole model is experts, and nearly all of them have the day off: of 256 in a layer
# a token sees 8, and one more that sees everybody, the shared one. An editor would say that he
# pays for a large newsroom and sends nine to the scene. (There the picture ends: eight of these
# nine are chosen anew for each token and in each layer, and what they are specialists in is
# seldom a field that one could put on a door. Tutorial 3 looked.)
#
# Who chooses? The *router*, a matrix with a column of 7168 numbers for each of the 256 experts.
# It scores all of them before it takes the best.
#
# ### Exercise 1: a layer of experts
#
# Write `mixture(dim, width, routed, chosen, shared)`. It returns two numbers: all parameters of
# one layer's experts, shared ones and the router included; and those of them that are at work
# on one token.


# %%
def mixture(dim, width, routed, chosen, shared):
    """(all parameters, those at work on a token) of one layer's experts and router."""
    # your code here


# %%
check_mixture(mixture)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def mixture(dim, width, routed, chosen, shared):
#     expert = 3 * dim * width
#     router = dim * routed
#     return (routed + shared) * expert + router, (chosen + shared) * expert + router
# ```
#
# </details>
#
# ## Attention, squeezed
#
# In ordinary attention a token makes three things of itself for each of its heads: a *query*
# (what it looks for), a *key* (what it is found by) and a *value* (what it then says). Keys and
# values of all tokens must be kept while a text is written; that store is called the cache, and
# it grows with every word.
#
# V3 has 128 heads, and keeping 128 keys and values would be dear. So it first squeezes a token
# into a narrow row of 512 numbers, the *latent*, and keeps only that, with 64 numbers more that
# say where the token stands. Keys and values are unfolded from it when they are wanted. This is
# *multi-head latent attention*, MLA. It takes five matrices.

# %%
heads, q_latent, kv_latent, position = 128, 1536, 512, 64
key, value = 128, 128  # numbers of one head, without the position
matrices = {
    "queries, squeezed": dim * q_latent,
    "queries, unfolded": q_latent * heads * (key + position),
    "latent and position": dim * (kv_latent + position),
    "keys and values, unfolded": kv_latent * heads * (key + value),
    "back to the width": heads * value * dim,
}
for name, n in matrices.items():
    print(f"{name:26}{n:>13,}")
attention = sum(matrices.values())
print(f"{'attention of one layer':26}{attention:>13,}")

# %%
squeezed = kv_latent + position
ordinary = 2 * heads * key  # a key and a value for each head
print(f"kept of a token in a layer: {squeezed} numbers in place of {ordinary:,}")
print(f"that is {ordinary / squeezed:.0f} times fewer")
four = 4 * dim * heads * key  # queries, keys, values, back
print(f"parameters: {attention / four:.0%} of an ordinary attention with as many heads")
assert attention < four / 2

# %% [markdown]
# The cache is the purpose. That the matrices are smaller as well comes as a present.
#
# ## All of it
#
# What remains is small. A table that makes a row of 7168 numbers of each of 129,280 tokens (the
# *embedding*), another that makes a score for each token of the last row (the *output*), the
# three lowest layers with one broad feed-forward network instead of experts, the routers, and
# the *norms*, a few numbers for each layer that keep rows to a size.
#
# **Before you run it:** will the sum be 671 billion, or only near it?

# %%
parts = {
    "routed": mixtures * experts * expert,
    "shared": mixtures * shared * expert,
    "attention": layers * attention,
    "dense": first_dense * 3 * dim * dense_width,
    "embedding": vocabulary * dim,
    "output": vocabulary * dim,
    "router": mixtures * dim * experts,
    "norms": (2 * layers + 1) * dim + layers * (q_latent + kv_latent),
}
total = sum(parts.values())
for name, n in parts.items():
    print(f"{name:10}{n / billion:9.3f} billion {n / total:8.2%}")
print(f"{'all':10}{total / billion:9.3f} billion")

# %% [markdown]
# To the published digits. The package counts the same way, part by part, and now you may let
# it: `count` reads a configuration and nothing else.

# %%
counted = count(v3)
for name, n in parts.items():
    assert n == getattr(counted, name), name
assert total == counted.total
assert round(total / billion) == 671

# And the parameters of one token: the experts that are not chosen stay at home.
work = dict(parts, routed=mixtures * chosen * expert)
at_work = sum(work.values())
assert at_work == counted.active
assert work["routed"] > at_work / 2
print(f"at work on a token       {at_work / billion:.2f} billion")
looked_up = parts["embedding"]
print(f"without the embedding    {(at_work - looked_up) / billion:.2f} billion")
assert round((at_work - looked_up) / billion, 1) == 36.6

# %% [markdown]
# The published 37 lies between the two. An embedding is looked up, not multiplied: of all its
# rows a token takes one. Left out, the rest rounds to 37; and 36.6 is what the note beside the
# published weights says (README_WEIGHTS.md, on Hugging Face).

# %%
colors = ["#0072b2", "#56b4e9", "#d55e00", "#e6c200", "#cccccc", "#666666"]
hatches = ["", "", "//", "", "..", "xx"]  # so that they differ in grey as well

# %%
figure, axis = plt.subplots(figsize=(7, 2.6))
for row, numbers in enumerate((parts, work)):
    left = 0.0
    for name, color, hatch in zip(list(parts)[:6], colors, hatches, strict=True):
        share = 100 * numbers[name] / sum(numbers.values())
        label = name if row == 0 else None
        look = {"color": color, "hatch": hatch, "edgecolor": "white", "label": label}
        axis.barh(row, share, 0.6, left, **look)
        left += share
axis.set_yticks([0, 1], ["all", "at work\non a token"])
axis.invert_yaxis()
axis.set_xlabel("share of the parameters, % (router and norms are too thin to see)")
axis.legend(ncols=6, fontsize=8, loc="upper center", bbox_to_anchor=(0.45, 1.2))
_ = figure.suptitle("All but a sliver is specialists; at work they are a good half")

# %% [markdown]
# ## From parameters to operations
#
# Now the work. When a token meets a matrix, each of its parameters is multiplied by something
# and the product is added to something: **two operations a parameter**. That is the forward
# pass. Training goes backward as well, and there every matrix takes part in two more products
# of the same size: one finds out how the input should have been different, the other how the
# matrix should be. Forward and backward together are **six operations a parameter and token**.
# Engineers write it 6ND, with N parameters and D tokens.
#
# Attention has work that belongs to no parameter: a token's query meets the key of each token
# before it, and takes their values in proportion. In V3 that is 128 heads, each with 128 + 64
# products for the key and 128 for the value. A token in the middle of its text sees half of it;
# on average it sees (context + 1) / 2 tokens, itself included.
#
# ### Exercise 2: operations a token
#
# Write `operations(weights, layers, products, context)`: the operations of *training*, for one
# token. `weights` are the parameters that multiply it, `products` the attention's products with
# one other token in one layer.


# %%
def operations(weights, layers, products, context):
    """Forward and backward, a token."""
    # your code here


# %%
check_operations(operations)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def operations(weights, layers, products, context):
#     seen = (context + 1) / 2
#     forward = 2 * (weights + layers * products * seen)
#     return 3 * forward
# ```
#
# </details>
#
# **Before you run the next cell:** by the rule of six, 37 billion parameters make 222 billion
# operations a token. How much does attention add, in a context of 4096 tokens: a hundredth, a
# tenth, or as much again?

# %%
from minimoe.cost import forward_flops, training_flops

weights = at_work - parts["embedding"] - parts["norms"]
products = heads * (key + position) + heads * value
seen = (v3.context + 1) / 2
by_parameters = 6 * weights
by_attention = 6 * layers * products * seen
each = by_parameters + by_attention
print(f"by parameters {by_parameters / billion:7.1f} billion operations a token")
print(f"by attention  {by_attention / billion:7.1f} billion more")
print(f"              which is {by_attention / by_parameters:.0%}")
print(f"training      {each / billion:7.1f} billion")
assert abs(each / training_flops(v3) - 1) < 1e-12
print(getsource(forward_flops))

# %% [markdown]
# ## From operations to hours
#
# The report gives 14.8 trillion tokens, and cards of the type H800. For the H100, of which the
# H800 is a copy with slower links, the maker's datasheet states 989 trillion operations a second,
# in 16-bit numbers and with every unit busy. That peak is never reached in practice.
# The question is how near one comes.
#
# **Before you run it:** if every card did its peak all the time, what would remain of the 2.664
# million hours that the report gives for pre-training? Write down a percentage.

# %%
from minimoe.cost import ACCELERATORS, PUBLISHED_RUNS, mfu

run = PUBLISHED_RUNS["deepseek-v3"]
h800 = ACCELERATORS[run.accelerator]
all_operations = each * run.tokens
print(f"operations of the training {all_operations:.2e}")
at_peak = all_operations / h800.bf16 / 3600
print(f"hours at the peak {at_peak / million:.2f} million")
print(f"hours published   {run.pretraining / million:.2f} million")
reached = at_peak / run.pretraining
print(f"so the cards reached {reached:.1%} of their peak in 16 bits")
print(f"and {reached * h800.bf16 / h800.fp8:.1%} of that in 8 bits")
assert abs(reached - mfu(v3, run.tokens, run.pretraining, h800.bf16)) < 1e-9
assert 0.3 < reached < 0.5  # believable: neither idle nor beyond the peak

# %% [markdown]
# This is the step that makes the story credible. Had the share come out above one, the hours
# would be too few for the arithmetic, and somebody would be in error. Far below, they would be
# waste. Something between a third and a half is what large runs reach. The rest goes into
# waiting: for memory, for numbers from other cards (tutorial 5), for operations that nobody
# counts, such as norms and the choosing of experts.
#
# One caution. V3 does most of its products in eight bits (tutorial 7), and there the card's
# peak is twice as high. Of that peak the cards reached only what the last line says. So eight
# bits did not do for this bill all that the card's maker promises of them.
#
# ### Exercise 3: dollars
#
# Write `dollars(operations, peak, share, price)`: `peak` in operations a second, `share` of it
# reached, `price` of one card for one hour.


# %%
def dollars(operations, peak, share, price):
    """What the cards cost."""
    # your code here


# %%
check_dollars(dollars)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def dollars(operations, peak, share, price):
#     seconds = operations / (peak * share)
#     return seconds / 3600 * price
# ```
#
# </details>
#
# The package's `training_cost` does this from a configuration. Suppose that the hours were not known.
# Meta's report on Llama 3.1, of the same year, gives 38 to 43% of the peak for its own training
# (arXiv 2407.21783, table 4), so that 40% would have been a reasonable guess, and 2 dollars a
# usual rent. You have seen 39.1%: **reckon** from it how far off one is then, and how far with
# 30 or 50%.

# %%
from minimoe.cost import training_cost

guess = training_cost(v3, run.tokens, peak=h800.bf16, mfu=0.4, price=2.0)
print(f"predicted: {guess.hours / million:6.3f} million hours")
print(f"           {guess.dollars / million:6.3f} million dollars")
print(f"           {guess.days(run.gpus):.0f} days on {run.gpus:,} cards\n")
for share in (0.3, 0.4, 0.5):
    off = at_peak / share / run.pretraining - 1
    print(f"guessing {share:.0%} of the peak: {off:+.0%} off the published hours")
assert abs(guess.hours / run.pretraining - 1) < 0.05

# %%
for stage, hours in run.hours.items():
    print(f"published: {hours / million:6.3f} million hours  {stage}")
print(f"in all     {run.total_hours / million:6.3f} million hours")
print(f"x ${run.price:g}       {run.dollars / million:6.3f} million dollars")
print(f"           {run.days:.0f} days of pre-training")
assert round(run.total_hours) == 2_788_000
assert round(run.dollars) == 5_576_000

# %% [markdown]
# There is the six million of the headlines: the published hours times two dollars. From a dozen
# numbers and one good guess we come within a few per cent of the hours; a worse guess misses them
# by a fifth or a third. And 2 dollars is the report's own assumption about rent, not something
# that anybody paid.
#
# **Before you run it:** what would the same arithmetic cost at half the price and at twice; at
# 20% of the peak and at 60%?

# %%
percent = range(20, 61, 2)
figure, axis = plt.subplots()
for price in (1, 2, 4):
    hours = [at_peak / (p / 100) for p in percent]
    dear = [h * price / million for h in hours]
    axis.plot(percent, dear, marker="", label=f"${price} a card and hour")
paid = run.pretraining * run.price / million
axis.plot(100 * reached, paid, "D", color="black", ls="")
axis.annotate("as published", (100 * reached + 0.6, paid + 0.3))
axis.set(xlabel="share of the peak that is reached, %", ylabel="million dollars")
axis.set_ylim(0, 22)
axis.set_title("The same arithmetic, other assumptions, another bill (pre-training)")
_ = axis.legend()

# %%
low, high = dear[-1] / 4, dear[0]  # $1 at 60%, $4 at 20%
print(f"from {low:.1f} to {high:.1f} million dollars, {high / low:.0f} times as much")

# %% [markdown]
# The arithmetic is firm. A forecast in dollars is arithmetic and two assumptions, the share and
# the price, and the line above says how far these can carry it. (The published dollars need the
# price alone: the hours were counted.) When somebody compares two models' dollars, ask for the
# operations first.
#
# ## Beside Llama
#
# Meta's Llama 3.1 405B is from the same year, and dense: every parameter works on every token.
# Its report and its model card give 15.6 trillion tokens, 30.84 million hours and up to 16,384
# cards (arXiv 2407.21783, section 3; the card on Hugging Face). It states no price; the package
# takes V3's.
#
# **Before you run the next cell**, predict Llama over V3, each as "so many times": parameters;
# parameters at work; tokens; operations of the training; card hours.

# %%
llama = PUBLISHED["llama-3.1-405b"]
theirs = PUBLISHED_RUNS["llama-3.1-405b"]
a, b = count(llama), count(v3)
theirs_all = training_flops(llama) * theirs.tokens
times = {
    "parameters": a.total / b.total,
    "at work on a token": a.active / b.active,
    "operations a token": training_flops(llama) / training_flops(v3),
    "tokens": theirs.tokens / run.tokens,
    "operations in all": theirs_all / all_operations,
    "share of the peak": theirs.mfu(llama) / run.mfu(v3),
    "hours, pre-training": theirs.pretraining / run.pretraining,
    "cards": theirs.gpus / run.gpus,
}

# %%
figure, axis = plt.subplots(figsize=(7, 3))
bars = axis.barh(list(times), list(times.values()), color="#0072b2", height=0.6)
bars[0].set_color("#999999")
axis.axvline(1, color="black", lw=1, ls="-", marker="")
for place, x in enumerate(times.values()):
    axis.text(max(x, 1) + 0.15, place, f"{x:.2f}", va="center")
axis.set(xlabel="Llama 3.1 405B over DeepSeek-V3, times", xlim=(0, 13))
axis.invert_yaxis()
_ = axis.set_title("The smaller model did ten times the work")

# %% [markdown]
# Hours are operations over what the cards really do. So the ratio of the hours must be that of
# the operations a token, times that of the tokens, over that of the shares. It is worth seeing
# which of the three made the difference.

# %%
product = times["operations a token"] * times["tokens"] / times["share of the peak"]
assert abs(product / times["hours, pre-training"] - 1) < 1e-9
for name in ("operations a token", "tokens", "share of the peak"):
    print(f"{name:20} {times[name]:6.2f} times")
print(f"together: {times['hours, pre-training']:.1f} times the hours")
assert times["operations a token"] > 9
assert 0.8 < times["tokens"] < 1.25
assert 0.8 < times["share of the peak"] < 1.25

# %% [markdown]
# Nearly all of it is the first factor. DeepSeek did not train on far fewer tokens, and its
# cards were not driven much harder. (Llama's own 38 to 43% counts the steps that ran, and the
# hours hold pauses too.) What DeepSeek did was to
# build a model in which a token meets a small part of the parameters. That is the mixture of
# experts, and by this count it is *the* reason why the bill is short. The eight bits, the
# careful messages between cards and the rest are what it took to let such a model run at an
# ordinary share of the peak on cards with slow links between them.
#
# How much would it have cost without? A dense model of V3's size, on the same tokens and at the
# same share:

# %%
dense_each = 6 * (total - parts["embedding"] - parts["norms"]) + by_attention
dense_hours = dense_each * run.tokens / (h800.bf16 * reached) / 3600
print(f"operations a token: {dense_each / each:.1f} times as many")
print(f"{dense_hours / million:.0f} million hours,", end=" ")
print(f"{dense_hours * run.price / million:.0f} million dollars")
assert dense_each > 10 * each

# %% [markdown]
# Two cautions. Whether that model would learn more from a token, no bill can say. Tutorial 6
# asks it in small; in the documented short runs the dense model of the same size did not. And
# Llama is not a worse V3: it was made earlier, for other ends, and to be simple to run. The
# figure compares bills, and not what was bought.
#
# ## What fits where
#
# Experts who have the day off do no work. But they need a chair: all 671 billion parameters
# must lie in memory, for who knows whom the next token wants. In bfloat16 a parameter takes two
# bytes, in eight bits one, with four bytes more for each block of 128 × 128 that share a scale
# (tutorial 1). Embedding, output, routers and norms stay in two bytes, as V3 keeps them.
#
# ### Exercise 4: cards
#
# Write `cards(size, memory)`: the least number of cards, each with `memory` bytes, that can
# hold `size` bytes.


# %%
def cards(size, memory):
    """A whole number."""
    # your code here


# %%
check_cards(cards)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# import math
#
# def cards(size, memory):
#     return math.ceil(size / memory)
# ```
#
# </details>
#
# A server as it is sold has eight cards: H800 with 80 GB each, or the later H200 with 141.
# **Before you run the next cell:** the newspaper wrote that eight bits reduced the memory
# needed to store the model. Which of the two machines holds V3 in 16 bits, which in 8?

# %%
from minimoe.cost import memory_footprint

linear = sum(parts[name] for name in ("routed", "shared", "attention", "dense"))
other = total - linear
sizes = {"16 bits": 2 * total, "8 bits": linear * (1 + 4 / 128**2) + 2 * other}
assert sizes["16 bits"] == memory_footprint(v3, "bf16").weights
assert abs(sizes["8 bits"] - memory_footprint(v3, "deepseek-v3").weights) < 1
machines = {name: 8 * ACCELERATORS[name].memory for name in ("h800", "h200")}
for bits, size in sizes.items():
    for name, memory in machines.items():
        word = "in" if size <= memory else "NOT in"
        gb, of = size / billion, memory / billion
        print(f"{bits:7} {gb:6.0f} GB {word:>6} the {of:4.0f} GB of 8 {name.upper()}")

# %%
figure, axis = plt.subplots(figsize=(7, 2.6))
sizes_gb = [size / billion for size in sizes.values()]
bars = axis.barh(list(sizes), sizes_gb, color=["#999999", "#0072b2"], height=0.5)
axis.bar_label(bars, fmt="%.0f GB", padding=4)
for (name, memory), style in zip(machines.items(), ("--", ":"), strict=True):
    mark = axis.axvline(memory / billion, color="black", linestyle=style, marker="")
    mark.set_label(f"8 {name.upper()}")
axis.set(xlabel="GB of weights", xlim=(0, 1700), ylim=(-0.6, 1.6))
axis.set_title("Eight bits halve the model, and just miss the older machine")
_ = axis.legend(loc="upper right")
assert machines["h800"] < sizes["8 bits"] < 1.1 * machines["h800"]  # a near miss
assert sizes["8 bits"] < machines["h200"] < sizes["16 bits"]

# %% [markdown]
# So the sentence is true, with a footnote: halved, the model fits into one machine of the newer
# kind. Into eight cards of the kind that it was trained on it does not fit, by a few per cent.
# The report itself takes 32 cards at the least to read questions, and 320 to write the answers
# (section 3.4).
#
# And weights are not all. Whoever answers keeps a cache for each text; whoever trains keeps,
# beside the weights, a precise copy of them, a gradient for each and the optimizer's two
# running means.

# %%
eight = memory_footprint(v3, "deepseek-v3")
room = machines["h200"] - eight.weights
cache = eight.cache_per_token
print(f"8 H200 leave {room / billion:.0f} GB; a token is kept in {cache / 1e3:.1f} kB:")
print(f"{room / cache / million:.1f} million tokens of cache, thanks to the latent")
plain = cache * ordinary / squeezed
print(f"with ordinary keys and values {room / plain / million:.2f} million")
least = eight.training / h800.memory
print(f"to train: {eight.training / trillion:.1f} TB, {least:.0f} cards at the least")
assert least < run.gpus / 10

# %% [markdown]
# Memory alone would ask for a tenth or less of the cards that there were. The rest are for
# speed, and for what a step keeps on the way (`minimoe.cost.activations`).
#
# ## After the bill
#
# Training is paid once. Answering is paid by the word, and each word costs a forward pass.
# **Guess:** after how many tokens of answers has the model done as much arithmetic as in its
# training?

# %%
answers = training_flops(v3) * run.tokens / forward_flops(v3)
print(f"after {answers / trillion:.1f} trillion tokens of answers:")
print(f"{answers / run.tokens:.0f} times those of its training")
assert round(answers / run.tokens) == 3  # forward is a third of a training step

# %% [markdown]
# (It is three times the tokens whatever the model; only the chosen experts work on an answer,
# too.) A service with many users may well get there. From then on training is the smaller part of
# the arithmetic; and of the dollars too, if answering uses the cards as well as training did.
#
# ## What this leaves out
#
# What a bill like this **never** contains. The report says so itself, in its introduction: the
# figure covers the official training run and leaves out earlier research and the experiments on
# architecture, method and data.
#
# - **The runs that failed**, and the small ones that decided how the large one should look.
#   Nobody has published their number.
# - **People**: the report lists well over a hundred authors.
# - **Data**: 14.8 trillion tokens had to be collected and cleaned, and perhaps paid for.
# - **Owning the cards.** Two dollars is rent. Who buys 2,048 cards pays for them in the years
#   when they idle, too.
# - **What came after**: R1's reinforcement learning is on another account.
#
# And what *we* left out of the operations: we counted matrix products. Norms, softmax, the
# optimizer and the module that predicts a second token (14 billion parameters more in the
# published files) are not in them.
#
# So "six million dollars" answers one question: what does it cost to run this program once,
# when everything is known? It does not answer what it costs to know it. And it is still
# remarkable, because anyone may now run the smaller question through the same cells:
#
# ```bash
# minimoe cost deepseek-v3 --compare-with llama-3.1-405b --keeping deepseek-v3
# minimoe cost mixtral-8x7b --compare-with llama-2-70b
# ```
#
# To read next: section 1 and table 1 of the DeepSeek-V3 report (arXiv 2412.19437), a page; then
# its section 3, on what it took. This is the last of the nine tutorials. `minimoe claims` tries
# most of the newspapers' sentences on your machine, one by one.
