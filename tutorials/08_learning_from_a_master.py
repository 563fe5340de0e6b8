# %% [markdown]
# # 8. *Learning from a master*
#
# After this you will be able to say what distillation is, write its loss yourself, with the
# temperature and the odd factor T² in it, and measure on your own machine when a big model
# really helps a small one, and when it does not.
#
# *About 35 minutes. It needs none of the other tutorials; you should have seen that a model is
# trained by following a gradient.*
#
# In January 2025 the newspapers told two stories. In the one, DeepSeek had put the skill of its
# big model into small ones that run on a laptop (its report on R1, arXiv 2501.12948v1, section
# 2.4). In the other, rivals suspected that the big one had itself been schooled on *their*
# models' answers. Both stories are of one craft, called **distillation**: a small model, the
# *student*, learns from what a big one, the *teacher*, says. The craft is older than either
# (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).
#
# Think of a newspaper's office. An apprentice can learn from the archive alone: cover the next
# word of an old article, guess it, look. Or an old editor sits beside him. The archive says
# only: the next word *was* "morning". The editor says: "morning", most likely; "evening" could
# also have stood there; "garden" hardly; "soup" never. The same line, the same minute, and
# more learnt. That is the whole idea, and the rest of this page is care.
#
# The picture ends in two places. Our editor is not wise (nor is he the editor of tutorial 3, who
# only hands out work): it is a larger model that has read the same archive for longer. And it
# does not explain; it only states, for every word there is, a probability.

# %%
from dataclasses import replace
from inspect import getsource
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from checks.tutorial_08 import check_kd, check_share, check_soften, check_t
from plot_style import plt

from minimoe import GPT, ModelConfig, TrainConfig, load_corpus, train
from minimoe.cost import flops_per_token, parameters
from minimoe.distill import DistillConfig, distill, divergence

torch.set_num_threads(1)  # matrices as small as ours gain nothing from more

# %% [markdown]
# ## What the archive says, and what the editor says
#
# "The minister arrived in the …" A model gives each word it knows a number, its **logit**: the
# higher, the likelier. To make probabilities of logits, raise e to each of them, so that all
# become positive, and divide by the total, so that they sum to 1. That is the *softmax*. Here
# are an editor's logits for five words, made up, and the archive's opinion beside them.

# %%
words = ["morning", "evening", "garden", "spring", "soup"]
editor = torch.tensor([4.0, 3.0, 1.0, 0.5, -3.0])
powers = editor.exp()
p = powers / powers.sum()
archive = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])
for word, old, said in zip(words, archive, p, strict=True):
    print(f"{word:8}  archive {old:.0f}   editor {said:.4f}")
assert torch.allclose(p, editor.softmax(-1))  # torch's softmax is the same

# %% [markdown]
# The archive's column is called a *hard* target, the editor's a *soft* one. What is worth
# having in the soft one is in its small numbers: that "spring" is so much likelier than "soup"
# is knowledge about English. But the numbers are so small that a student will hardly notice
# them. So Hinton and his colleagues divide the logits by a **temperature** T before the
# softmax. At T = 1 nothing changes. Above it, the surest opinions come down and the faint ones
# come up.
#
# ### Exercise 1: a temperature
#
# Write the softmax with a temperature. Before you check it, predict what the five words get at
# T = 100, and write it down.


# %%
def soften(logits, temperature):
    """Probabilities of logits at this temperature; they sum to 1."""
    # your code here


# %%
check_soften(soften)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def soften(logits, temperature):
#     powers = (logits / temperature).exp()
#     return powers / powers.sum()
# ```
#
# </details>
#
# At T = 100 all logits lie so near to each other that every word gets about a fifth: the editor
# shrugs. And the order of the words never changes, at any temperature.

# %%
figure, axis = plt.subplots()
for i, temperature in enumerate((1, 3, 100)):
    heights = (editor / temperature).softmax(-1)
    places = torch.arange(5) + 0.27 * (i - 1)
    axis.bar(
        places, heights, 0.25, label=f"T = {temperature}",
        color=("#0072b2", "#d55e00", "#cccccc")[i], hatch=("", "//", "")[i],
    )  # fmt: skip
axis.set_xticks(range(5), words)
axis.set_ylabel("probability")
axis.set_title("A higher temperature lets the faint opinions be heard")
_ = axis.legend()

# %% [markdown]
# ## How far apart two opinions are
#
# The student has an opinion q of its own, and it shall come to be the editor's, p. We need one
# number that says how far it is from that. It is the **Kullback-Leibler divergence**,
#
# $$\mathrm{KL}(p \,\|\, q) = \sum_{\text{words}} p\,(\log p - \log q).$$
#
# One who believes q, in a world where p is true, is more surprised on average than one who
# believes p; the divergence is by how much, on average for each word. Logarithms to the
# base e count it in *nats* (a nat is about 1.44 bits). It is 0 when q is p, and never below. It
# is not the same in both directions: the first opinion is the one that is held to be true.

# %%
apprentice = torch.tensor([2.0, -1.0, 1.5, 0.0, 0.0])
q = apprentice.softmax(-1)
by_hand = (p * (p.log() - q.log())).sum()
print(f"KL(editor || apprentice) = {by_hand:.4f} nats")
other_way = (q * (q.log() - p.log())).sum()
print(f"KL(apprentice || editor) = {other_way:.4f} nats: another number")

# The package has it too; its order is: student, teacher.
assert torch.isclose(by_hand, divergence(apprentice, editor))
assert divergence(editor, editor).abs() < 1e-6  # nothing to learn from oneself

# %% [markdown]
# And learning from the archive is the special case of an editor who is always sure. Let p be the
# archive's column, 1 for the word that stood there and 0 for the others. All terms but one vanish
# (0 · log 0 counts as 0), log 1 is 0, and what is left is −log q of that word: the ordinary
# *cross-entropy* that every language model is trained with.

# %%
certain = torch.tensor([0.0] + [-torch.inf] * 4)  # e to the -inf is 0
from_an_archive = divergence(apprentice, certain)
ordinary = F.cross_entropy(apprentice, torch.tensor(0))
print(f"an editor who is always sure: {from_an_archive:.4f}")
print(f"cross-entropy with the archive: {ordinary:.4f}")
assert torch.isclose(from_an_archive, ordinary)

# %% [markdown]
# ## Why T², of all things
#
# With a temperature, both opinions are softened by the same T, and the divergence is taken of
# the soft ones. Learning is following the gradient: for each logit of the student, how much the
# divergence would change if that logit moved.
#
# **Before you run the next cell:** the temperature doubles, again and again. Does the length of
# the gradient stay as it is, halve each time, or fall to a quarter? Write it down.

# %%
generator = torch.Generator().manual_seed(0)
editors = 2 * torch.randn(64, 256, generator=generator)  # 64 places, 256 "words"
students = 2 * torch.randn(64, 256, generator=generator)


def pull(temperature):
    """The gradient of the divergence in the student's logits, without any factor."""
    logits = students.clone().requires_grad_()
    divergence(logits, editors, temperature=temperature).backward()
    return logits.grad


# %%
temperatures = [1, 2, 4, 8, 16, 32, 64, 128]
plain = [pull(T).norm().item() for T in temperatures]
mended = [T**2 * length for T, length in zip(temperatures, plain, strict=True)]
figure, axis = plt.subplots()
axis.loglog(temperatures, plain, label="as it is")
axis.loglog(temperatures, mended, label="times T²")
axis.set_xticks(temperatures, temperatures)
axis.set(xlabel="temperature T", ylabel="length of the gradient", ylim=(1e-6, 1))
axis.set_title("Without T² the teacher's voice fades; with it, it settles")
axis.legend()
last = plain[-2] / plain[-1]
print(f"from T = 64 to 128 the gradient falls {last:.2f} times, and T² mends that")
assert 3.8 < last < 4.2  # a quarter each time, in theory exactly in the limit
assert 0.3 < mended[-1] / mended[0] < 3

# %% [markdown]
# It falls to a quarter, once T is large. Two causes, each a factor of 1/T. The softmax is taken
# of z/T, so a logit moved by a little moves what goes into the softmax by a T-th of that. And
# the softened opinions lie near each other, all words close to 1/V of V words; what differs
# between them is itself a T-th of what the logits differ by.
#
# So whoever raises T turns the teacher down without wishing to. That matters as soon as the
# loss has a second term, the archive's: the balance between the two would shift with T.
# Hinton's remedy is to multiply the divergence by T². Then T says *which* of the teacher's
# opinions are heard and not *how loud*.
#
# The limit tells what a very high temperature asks for. With T² the gradient in logit z becomes
# (z − v)/V, where v is the teacher's logit and each is taken less the mean of all the logits of
# its place: copy my logits, every one of them, "soup" included.

# %%
centred = students - students.mean(-1, keepdim=True)
centred = centred - (editors - editors.mean(-1, keepdim=True))
theory = centred / 256 / 64  # the loss is a mean over the 64 places
for temperature in (1, 10, 100):
    gap = (temperature**2 * pull(temperature) - theory).norm() / theory.norm()
    print(f"T = {temperature:3}: the gradient is {gap:.1%} off 'copy my logits'")
assert gap < 0.03  # at T = 100

# %% [markdown]
# Which temperature is best is a matter of trial. The [table of
# handwritten digits](../docs/results/digits.md) has temperatures from 2 to 8 ahead of 1 where
# images are few. For text,
# where every byte of every line is a lesson, T = 1 is usual, and it is what we shall use below.
# (`DistillConfig(temperature=2)` is there to be tried.)
#
# ### Exercise 2: the loss of distillation
#
# Write the loss of distillation: α times the cross-entropy with the archive's word (at
# temperature 1), plus (1 − α) times T² times KL(teacher ‖ student) at temperature T; each a
# mean over the tokens. `student` and `teacher` are logits with a row for each of N tokens and a
# column for each of V words; `targets` holds N whole numbers. `x.log_softmax(-1)` is the
# logarithm of the softmax, and safer than taking the logarithm afterwards.


# %%
def my_kd_loss(student, teacher, targets, temperature, alpha):
    """alpha * cross-entropy + (1 - alpha) * T² * KL(teacher || student)."""
    # your code here


# %%
check_kd(my_kd_loss)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def my_kd_loss(student, teacher, targets, temperature, alpha):
#     log_p = (teacher / temperature).log_softmax(-1)
#     log_q = (student / temperature).log_softmax(-1)
#     soft = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
#     hard = F.cross_entropy(student, targets)
#     return alpha * hard + (1 - alpha) * temperature**2 * soft
# ```
#
# </details>
#
# The package's `kd_loss` comes to the same and guards against what goes wrong in practice:
# tokens that do not count, logits in 16 bits, words that one of the two does not have. This is
# where it mixes the two terms.

# %%
from minimoe.distill.losses import mix

print(getsource(mix))

# %% [markdown]
# ## An editor and an apprentice
#
# Now with real text: Python's own reference manual, which is on your machine already. The
# models read bytes, of which there are 256, so they have no other vocabulary. How well a model
# knows a text is counted in **bits per byte**, the cross-entropy with logarithms to the base 2,
# on text that it was not trained on. Knowing nothing costs 8 bits; fewer are better.
#
# The editor is a GPT of two layers. It is small as editors go, because it must be trained while
# you wait.

# %%
corpus = load_corpus("reference")
big = ModelConfig(dim=64, n_layers=2, n_heads=4, hidden_dim=176, context=64)
small = ModelConfig(dim=32, n_layers=1, n_heads=2, hidden_dim=96, context=64)

torch.manual_seed(0)
teacher = GPT(big)
schooling = TrainConfig(steps=200, lr=6e-3, warmup=20, eval_every=50, eval_sequences=64)
master = train(teacher, corpus, schooling)[-1].bits_per_byte
print(f"teacher {parameters(big):,} parameters, student {parameters(small):,}")
print(f"text: {len(corpus.train[0]):,} bytes; the teacher: {master:.3f} bits per byte")
assert master < 3.2  # it has learnt something

# %% [markdown]
# Here is one of its opinions. Of some lines that it was not trained on we take the one at whose
# end its first choice has about even odds, and look at its eight likeliest bytes, plain and
# softened.

# %%
lines = next(corpus.validation_batches(64, 64, 64))
with torch.no_grad():
    at_end = teacher(lines.tokens_BL)[0][:, -1]  # what follows the last byte
row = (at_end.softmax(-1).amax(-1) - 0.5).abs().argmin()
top = at_end[row].argsort(descending=True)[:8]
letters = [repr(chr(byte)) for byte in top]
before = bytes(lines.tokens_BL[row].tolist()).decode(errors="replace")
came = chr(lines.targets_BL[row, -1])
print(f"after {before[-40:]!r} came {came!r}")

# %%
figure, axis = plt.subplots()
for i, temperature in enumerate((1, 2)):
    heights = (at_end[row] / temperature).softmax(-1)[top]
    axis.bar(
        torch.arange(8) + 0.4 * i - 0.2, heights, 0.38, label=f"T = {temperature}",
        color=("#0072b2", "#d55e00")[i], hatch=("", "//")[i],
    )  # fmt: skip
axis.set_xticks(range(8), letters)
axis.set(xlabel=f"next byte; the archive has {came!r}", ylabel="probability")
axis.set_title("The archive names one byte; the teacher weighs them all")
_ = axis.legend()

# %% [markdown]
# ## Where there is plenty of text
#
# Now the apprentices. All have the same habits: the same rate of learning, held constant, and
# evaluated with averaged weights, so that every point of a curve is a fair place to stop. The
# rate was chosen for a student *alone*; the taught ones get no rate of their own. Everything is
# done with three **seeds**: other first weights, other pieces of the text. What changes with the
# seed is luck, and you will want to know how much of it there is.

# %%
habits = TrainConfig(
    batch_size=8, lr=8e-3, warmup=10, schedule="constant", average=0.1,
    eval_every=20, eval_sequences=48,
)  # fmt: skip


def lessons(lesson, text, steps):
    """Bits per byte: a row for each seed, a column for each evaluation."""
    rows = []
    for seed in range(3):
        torch.manual_seed(seed)
        how = replace(habits, steps=steps, seed=seed)
        found = distill(GPT(small), teacher, text, how, lesson)
        rows.append([evaluation.bits_per_byte for evaluation in found])
    return torch.tensor(rows)


# %% [markdown]
# A `DistillConfig` answers two questions. What does the student *see*: the text's own next byte (its
# label), or all the teacher's logits? And whose text does it *read*: the corpus', the
# teacher's, or its own? Alone, it sees labels and reads the corpus. Taught, it sees logits and
# reads the corpus.
#
# But a look at the teacher is not free: the teacher must read along, one forward pass for every
# byte. For a fair reckoning we count arithmetic as well as steps, and let the student that is
# alone go on until it has spent as much.

# %%
STEPS = 80
step = 8 * 64 * flops_per_token(small)  # 8 lines of 64 bytes, forward and backward
look = 8 * 64 * flops_per_token(big, training=False)  # the teacher, forward only
price = (step + look) / step
longer = 20 * round(STEPS * price / 20)
print(f"a taught step costs {price:.2f} steps alone")
print(f"for {STEPS} taught steps, {longer} alone")

# %% [markdown]
# **Before you run the next cell**, predict two results. After the same number of steps, is the
# taught student better, and by how many tenths of a bit? And after the same arithmetic? Write
# both down.

# %%
alone = lessons(DistillConfig(signal="labels"), corpus, longer)
taught = lessons(DistillConfig(signal="logits"), corpus, STEPS)
same_steps = alone[:, STEPS // 20 - 1] - taught[:, -1]
same_work = alone[:, -1] - taught[:, -1]


def spread(differences):
    values = differences.tolist()
    return f"{fmean(values):+.3f} ± {stdev(values):.3f}"


# %%
print("bits per byte that the teacher saves (below 0: it costs), 3 seeds")
print(f"  after equal steps       {spread(same_steps)}")
print(f"  after equal arithmetic  {spread(same_work)}")
assert same_steps.mean() > 0  # a look is worth something
assert same_work.mean() < -0.1  # but not what it costs, here


# %%
def draw(axis, spent, rows, label, color, style):
    """The mean of the seeds, and a band from the worst to the best."""
    axis.plot(spent, rows.mean(0), style, color=color, label=label)
    low, high = rows.amin(0), rows.amax(0)
    axis.fill_between(spent, low, high, color=color, alpha=0.2, lw=0)


figure, axis = plt.subplots()
steps = 20 * torch.arange(1, alone.shape[1] + 1)
draw(axis, steps * step / 1e9, alone, "alone", "black", "s--")
draw(axis, steps[:4] * (step + look) / 1e9, taught, "taught by logits", "#0072b2", "o-")
axis.set(xlabel="arithmetic spent, GFLOP (looks included)", ylabel="bits per byte")
axis.set_title("With plenty of text, spend on text (band: 3 seeds)")
_ = axis.legend()

# %% [markdown]
# Step for step the teacher helps, because a soft target says more than a hard one. But the curves
# are drawn against what was *spent*, and there the student alone is ahead. For the price of one
# look it reads further lines, and as long as there are fresh ones, these teach it more. The
# [longer run](../docs/results/distillation.md) found the like with a larger student, a larger
# teacher and four kinds of text: at equal
# steps a gain too small for three seeds to show, at equal arithmetic a clear loss. And the
# teacher's own schooling is on neither bill.
#
# Why, then, does anybody do it?
#
# ## Where text is scarce
#
# Because fresh lines run out. Suppose the apprentice has one hundredth of the archive, a page
# or two, while his editor has read all of it. That is no contrivance: worked answers to hard
# sums are scarce, and so are a firm's own letters.

# %%
page = corpus.part(0.01)
size = len(page.train[0])
print(f"{size:,} bytes; in 120 steps each is read {120 * 8 * 64 / size:.0f} times\n")
print(bytes(page.train[0][:280]).decode(errors="replace"), "…")

# %% [markdown]
# **Before you run the next cell:** one student alone with the page, for 120 steps; one with the
# page and the teacher's logits, for 80. Sketch both curves of bits per byte on *unseen* text.
# Do they fall throughout?

# %%
alone_page = lessons(DistillConfig(signal="labels"), page, 120)
taught_page = lessons(DistillConfig(signal="logits"), page, STEPS)
best = alone_page[:, : STEPS // 20].amin(1)  # of one who stops early, within as many steps
logits = taught_page.amin(1)
print(f"alone:  best {best.mean():.3f}, at the end {alone_page[:, -1].mean():.3f}")
print(f"taught: best {logits.mean():.3f}, at the end {taught_page[:, -1].mean():.3f}")
print(f"bits that the teacher saves, best against best: {spread(best - logits)}")
assert (best - logits).min() > 0.2  # for every seed
assert alone_page[:, -1].mean() > best.mean() + 0.05  # it gets worse again

# %%
figure, axis = plt.subplots()
draw(axis, steps[:6], alone_page, "alone with the page", "black", "s--")
draw(axis, steps[:4], taught_page, "the page and the teacher", "#0072b2", "o-")
axis.axhline(master, color="#999999", linestyle=":", marker="", label="the teacher")
axis.set(xlabel="steps", ylabel="bits per byte, unseen text")
axis.set_title("Alone it learns the page by heart; taught it goes on learning")
_ = axis.legend()

# %% [markdown]
# The student alone learns for a while, and then it learns its page *by heart*. The labels
# reward it for being ever surer that after these letters comes that one, because on this page
# it always does. On any other page that certainty is a mistake, and a dear one. More arithmetic
# makes it worse.
#
# The taught student reads the very same page. But the teacher never says that only one byte can
# follow. It says what followed in all the pages it has read. So the page is no longer a text to
# be known by heart. It is a list of questions, and the answers bring in the rest of the
# archive. This is where distillation is at home.
#
# A result so large deserves a suspicion. The page is short, but it is also from *one chapter*;
# what did the harm? Let us give another student alone as many bytes, but in clippings from all
# over the manual.

# %%
import numpy as np

whole = corpus.train[0]
starts = np.random.default_rng(0).integers(len(whole) - 100, size=size // 100)
pieces = np.concatenate([whole[start : start + 100] for start in starts])
clippings = lessons(DistillConfig(signal="labels"), replace(page, train=(pieces,)), 120).amin(1)
plenty = alone[:, :6].amin(1)
print(f"alone for 120 steps, at best: with the page      {alone_page.amin(1).mean():.3f}")
print(f"                              with clippings     {clippings.mean():.3f}")
print(f"                              with all the text  {plenty.mean():.3f}")
assert clippings.mean() > plenty.mean() + 0.1  # short is short, whatever is in it

# %% [markdown]
# Both, then. The clippings are as short as the page, and with them too the student stays far
# behind what it reaches with plenty of text. But whatever lies between the page and the
# clippings is owed to the one chapter (or to the luck of one draw of clippings), not to the
# shortness. Keep that in mind when you read that somebody's copy "needs only a thousand
# examples": it matters which.
#
# The gain is best told as a share of what there was to gain.
#
# ### Exercise 3: the gap closed
#
# Write the share of the gap between the student alone and its teacher that a lesson closed: 0
# if it did as well as alone, 1 if it did as well as the teacher.


# %%
def share_closed(alone, taught, teacher):
    """Each in bits per byte."""
    # your code here


# %%
check_share(share_closed)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def share_closed(alone, taught, teacher):
#     return (alone - taught) / (alone - teacher)
# ```
#
# </details>
#
# ## Only its words
#
# So far the student has looked into its teacher's head. Behind somebody else's interface there
# is less to see: questions go in, text comes out. Can a model be copied by its words alone? The
# student then sees labels, as it would alone, but of a text that the teacher wrote. This is how
# R1 was distilled into small models: on some 800,000 samples that R1 had helped to make, and no
# logits at all (arXiv 2501.12948v1, section 2.4).
#
# This is how our teacher writes. A few letters of the page are given it to begin with.

# %%
from minimoe.distill.evaluation import as_text
from minimoe.models.generation import generate

begin = torch.tensor([list(page.train[0][:24])]).long()
chance = torch.Generator().manual_seed(0)
written = generate(teacher, begin, 200, generator=chance)
print(as_text(begin[0]), "|", as_text(written[0]))

# %% [markdown]
# It is not English. But it has the archive's letters, endings and indents, and there is no end
# of it. The next cell has the teacher write ten times as many bytes as the page has, and a
# student read them. A step on words costs no more than a step alone, once they are written.
#
# A last student does it the other way round. It reads its **own** text, and the teacher grades
# each byte of it (*on-policy* distillation; GKD, arXiv 2306.13649). The thought is that an
# apprentice should be corrected in the mistakes that he makes and not in those that he would
# never make.
#
# **Before you run it:** put these in order, best first, each at its best within 80 steps: the
# page alone; the page with logits; ten pages of the teacher's words; the student's own text
# with logits. And what if the student of words may read for twice as many steps?

# %%
how = DistillConfig(signal="labels", data_source="teacher", teacher_tokens=10 * size)
words = lessons(how, page, 2 * STEPS)
own = lessons(DistillConfig(signal="logits", data_source="student"), page, STEPS).amin(1)
half = words.shape[1] // 2
ways = {
    "the page alone": best,
    "the page, logits": logits,
    "its own text, logits": own,
    "ten pages of words": words[:, :half].amin(1),
    "the same, twice as long": words.amin(1),
}

# %%
for name, bits in ways.items():
    closed = (best - bits) / (best - master)  # exercise 3, seed by seed
    print(f"{name:24} {bits.mean():.3f} bits, gap closed {closed.mean():4.0%}")
writing = 10 * size / (8 * 64) * look / step
print(f"to write ten pages takes the arithmetic of {writing:.0f} steps alone")
assert words.amin(1).mean() < best.mean()  # words alone do teach
assert logits.mean() < words[:, :half].amin(1).mean()  # slower, step for step
assert words.amin(1).mean() < logits.mean() + 0.1  # but patience makes up for it

# %%
figure, axis = plt.subplots()
for place, bits in enumerate(ways.values()):
    apart = [place - 0.15, place, place + 0.15]  # or seeds that agree would hide each other
    axis.plot(bits, apart, "o", color="#0072b2", alpha=0.7, markersize=6)
    axis.plot(bits.mean(), place, "|", color="black", markersize=18)
axis.axvline(master, color="#999999", linestyle=":", marker="")
axis.text(master, -0.55, " the teacher", color="#555555")
axis.set_yticks(range(len(ways)), ways)
axis.set(xlabel="bits per byte, unseen text (a dot for each seed, a bar for the mean)")
axis.set_ylim(len(ways) - 0.5, -0.9)  # the first on top
_ = axis.set_title("Step for step logits teach most; words need more steps")

# %% [markdown]
# Words do teach, and of words there is no scarcity. But they teach slowly, for a written byte
# is one draw from the teacher's opinion, while the logits are the opinion itself, all 256
# probabilities of it. A student that must find these out from draws needs many. On the other
# side of the ledger the words are written once and can be read again and again, while looks are
# paid for at every reading, unless they are kept (`minimoe/distill/logit_cache.py`). So a longer
# reading makes up for much; here it even catches up with the logits of the shorter lesson. In the
# documentation's longer run with scarce text it does not: there words in plenty beat the real text, and
# logits on that little text beat the words, which close about two thirds of what logits close.
# *Copying through answers* is possible, then. It takes patience, and somebody's leave.
#
# ## What three seeds allow one to say
#
# Most figures above came with a spread, and now the spread has to work. We have three
# differences, one a seed: the same first weights, with this and with that. Their mean is not 0.
# But nor do six throws of a coin always give three heads. Is it more than luck?
#
# The usual measure divides the mean of n differences by the error of that mean, which is their
# standard deviation over the root of n:
#
# $$t = \frac{\text{mean}}{\text{standard deviation} / \sqrt{n}}.$$
#
# If there were nothing but luck, |t| from three seeds would pass **4.30** in one case of
# twenty. The measure goes back to a brewer in Dublin who published under the name "Student"
# (Biometrika, 1908); he did not mean ours. The figure is so high because a standard deviation
# from three values is itself a poor guess.
#
# ### Exercise 4: is it luck?
#
# Write t. The standard deviation is the one that divides by n − 1, as `statistics.stdev` does.


# %%
def t_value(differences):
    """Of a list of differences, one a seed."""
    # your code here


# %%
check_t(t_value)

# %% [markdown]
# <details>
# <summary>Solution</summary>
#
# ```python
# def t_value(differences):
#     error = stdev(differences) / len(differences) ** 0.5
#     return fmean(differences) / error
# ```
#
# </details>
#
# **Before you run the next cell:** of its eight comparisons, which will pass? Look back at the
# dots.

# %%
slow, patient = ways["ten pages of words"], ways["the same, twice as long"]
rows = {
    "all text, equal steps: taught over alone": same_steps,
    "all text, equal arithmetic: taught over alone": same_work,
    "the page: logits over alone": best - logits,
    "the page: words over alone": best - slow,
    "the page: words, twice as long, over alone": best - patient,
    "the page: logits over words": slow - logits,
    "the page: logits over words, twice as long": patient - logits,
    "logits: own text over the page": logits - own,
}

# %%
for name, d in rows.items():
    t = (d.mean() / (d.std() / 3**0.5)).item()
    luck = 1 - abs(t) / (t**2 + 2) ** 0.5  # chance of such a t; for three seeds alone
    verdict = "cannot say" if luck > 1 / 20 else "won" if t > 0 else "LOST"
    star = "*" if luck < 1 / 20 / len(rows) else ""
    print(f"{name:45} {spread(d)}  t {t:+6.1f}  luck {luck:6.2%}  {verdict}{star}")
assert abs(1 - 4.303 / (4.303**2 + 2) ** 0.5 - 1 / 20) < 1e-4  # Student's table

# %% [markdown]
# "Luck" is the chance of a t at least so far from 0 if the lesson made no difference; for three
# seeds there is a short formula for it. Read the last column strictly. "Cannot say" is not "the
# same": three seeds are too few for so small a difference, or for one that varies so much, and
# more of them may settle it. "Won" and "LOST" have their limits too. Whoever makes eight
# comparisons at one in twenty each should not wonder at a false one; a star marks those that
# would pass at an eighth of that. Nor is t a size: it is also large where three differences
# happened to agree.
#
# And the seeds vary the student's luck alone. There was one teacher, one manual and one page.
# What may be trusted here is what is large and has a reason: with the page, the teacher's
# logits close a good part of the gap; with plenty of text they do not pay.
#
# The [documentation](../docs/results/distillation.md) has the experiment in earnest, with larger
# models, four kinds of text and a teacher
# for each of three seeds. There, too, the teacher gave little where text was plenty, and closed
# most of the gap where the student had a twentieth of it; there the student's own text came out a
# hundredth of a bit ahead of the corpus, which by the rule above is "cannot say". (The page's
# "won" tells only whose mean was better.) In half an hour or so your machine can repeat it:
#
# ```bash
# minimoe distill --data-fraction 0.05 --seeds 3
# ```
#
# ## What this leaves out
#
# - **What an interface shows.** Between all logits and words alone lie the few likeliest
#   tokens. A student that is shown four of them learns that the rest are all alike:
#   `DistillConfig(signal="top-k", k=4)`, and `minimoe/distill/topk_loss.py`.
# - **Labels beside the teacher.** `DistillConfig(alpha=0.5)` mixes the archive in again. On that page
#   it helps where there is plenty of text and harms where there is little. Try both here.
# - **Other teachers.** A mixture of experts teaches as well as a dense model, and its looks
#   cost less; a teacher in 8 bits (tutorial 7) costs next to nothing in quality. Both are in
#   its tables.
# - **Other divergences.** `DistillConfig(kind="reverse")` and others: they differ in what a student
#   does that is too small to hold all of its teacher's opinions.
# - **Reasoning.** R1's students learnt from chains of thought, and those that ended wrongly had
#   been sorted out. Nothing here is checked, and nothing reasons.
#
# To read next: Hinton, Vinyals and Dean, arXiv 1503.02531, section 2 (the T² is in it, in two
# sentences); then section 2.4 of R1's report, arXiv 2501.12948v1. And tutorial 9 goes on to what
# all of this costs.
