"""Digits: batched networks against plain PyTorch, one at a time; students, tables and the command."""

import itertools
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

pytest.importorskip("sklearn")
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, recall_score

from minimoe.cli import main as cli
from minimoe.cli.commands import digits as command
from minimoe.experiments.context import RunContext
from minimoe.experiments.digits import experiment, lr_search, students
from minimoe.experiments.digits.experiment import DIGITS, dark_knowledge, digits
from minimoe.experiments.digits.networks import (
    Images,
    Networks,
    draw_rows,
    load_images,
    raise_bias,
    shifted,
    train_networks,
    train_teachers,
)
from minimoe.experiments.digits.students import (
    LOSSES,
    RATES,
    UNSEEN,
    count_errors,
    recall,
    student_errors,
    train_students,
    unseen_digits,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def teachers():
    torch.set_num_threads(1)
    return train_teachers(seeds=3, steps=300)


def cells(table) -> dict[str, list[str]]:
    assert all(len(row) == len(table.headings) for row in table.rows)
    return {row[0]: row[1:] for row in table.rows}


def measured(tmp_path, monkeypatch, seeds=2, seed=0):
    """The experiment in a few steps, with students of 50 images instead of 100."""
    monkeypatch.setattr(experiment, "FEW", 50)
    return digits(seed, teacher_steps=20, steps=3).measure(RunContext(tmp_path, seeds=seeds))


# the images


def test_every_image_is_either_trained_or_tested_on():
    images = load_images()
    pixels, labels = load_digits(return_X_y=True)
    assert [len(x) for x in images] == [897, 897, 900, 900]
    ours = np.concatenate([torch.cat(images[::2]).numpy() * 16, torch.cat(images[1::2])[:, None]], axis=1)
    given = np.concatenate([pixels, labels[:, None]], axis=1)
    assert (ours[np.lexsort(ours.T)] == given[np.lexsort(given.T)]).all()  # pixels with their labels
    assert torch.equal(images.test_ND, load_images().test_ND)
    assert torch.equal(images.test_ND[-10:], load_images(10).test_ND)
    assert not np.array_equal(images.train_N[:100], labels[:100])  # the file is sorted by writer


def test_without_scikit_learn_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match="the digits come with scikit-learn; pip install scikit-learn"):
        load_images()


@pytest.mark.parametrize("n_test", [0, 1797])
def test_an_impossible_split_is_refused(n_test):
    with pytest.raises(ValueError, match=rf"n_test \({n_test}\) must be between 1 and 1796"):
        load_images(n_test)


def test_shifted_images_are_those_of_numpy():
    x = torch.rand(2, 3, 64)
    for view, (down, right) in zip(shifted(x), itertools.product((1, 0, -1), repeat=2), strict=True):
        padded = np.pad(x.view(2, 3, 8, 8).numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
        expected = np.roll(padded, (down, right), axis=(2, 3))[:, :, 1:-1, 1:-1]
        assert np.array_equal(view.view(2, 3, 8, 8), expected)
    assert torch.equal(shifted(x)[4], x)


# the networks


def test_batched_networks_are_independent_ones():
    networks, x = Networks(3, (64, 7, 5, 10), generator=seeded()), torch.rand(4, 64)
    for seed, logits in enumerate(networks(x)):
        h = x
        for layer, (weight, bias) in enumerate(zip(networks.weights, networks.biases, strict=True)):
            h = F.linear(F.relu(h) if layer else h, weight[seed].T, bias[seed, 0])
        torch.testing.assert_close(logits, h)
    assert not torch.equal(networks.weights[0][0], networks.weights[0][1])
    spread = networks.weights[1].detach().std().item()
    assert spread == pytest.approx((2 / 7) ** 0.5, rel=0.2)  # He initialization


def test_dropout_drops_hidden_units_only_and_only_in_training():
    x, before = torch.rand(500, 64), torch.get_rng_state()
    networks = Networks(2, (64, 40, 10), dropout=0.2, generator=seeded())
    with torch.no_grad():
        networks.weights[0].zero_()
        networks.biases[0].fill_(1.0)
        networks.weights[1].fill_(1.0)
        kept = networks(x) * 0.8  # how many of the 40 units
    torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-4)
    assert kept.mean().item() == pytest.approx(32, abs=0.5)
    assert kept.std() > 1
    torch.testing.assert_close(networks.eval()(x), torch.full((2, 500, 10), 40.0))
    straight = Networks(1, (64, 10), dropout=0.9, generator=seeded())
    assert torch.equal(straight(x), straight(x))  # pixels are not dropped
    assert torch.equal(torch.get_rng_state(), before)


def hinton(logits, label, teacher, temperature, alpha):
    """Section 2 of the paper, from PyTorch's losses."""
    hard = F.cross_entropy(logits, label)
    log_p = (teacher / temperature).log_softmax(-1)
    soft = F.kl_div((logits / temperature).log_softmax(-1), log_p, reduction="batchmean", log_target=True)
    return alpha * hard + (1 - alpha) * temperature**2 * soft


@pytest.mark.parametrize("settings", [None, (1.0, 0.0), (4.0, 0.0), (4.0, 0.5)])
def test_training_is_that_of_each_network_alone(settings):
    """With one image each, every batch is known."""
    x, labels, teacher = torch.rand(3, 1, 64), torch.tensor([[3], [8], [1]]), 3 * torch.randn(3, 1, 10)
    temperature, alpha = settings or (1.0, 1.0)
    networks = train_networks(
        (9,), x, labels, seed=5, rate=0.02, steps=60, teacher_SNC=teacher if settings else None,
        temperature=temperature, alpha=alpha,
    )  # fmt: skip
    start = Networks(3, (64, 9, 10), generator=seeded(5))
    for seed in range(3):
        parts = zip(start.weights, start.biases, strict=True)
        parameters = [p[seed].detach().clone().requires_grad_() for pair in parts for p in pair]
        optimizer = torch.optim.Adam(parameters)
        for step in range(60):
            optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 60)
            w1, b1, w2, b2 = parameters
            logits = F.relu(x[seed] @ w1 + b1) @ w2 + b2
            loss = hinton(logits, labels[seed], teacher[seed], temperature, alpha)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        trained = itertools.chain(*zip(networks.weights, networks.biases, strict=True))
        for actual, expected in zip(trained, parameters, strict=True):
            torch.testing.assert_close(actual[seed], expected, rtol=1e-5, atol=1e-5)
    assert not networks.training


def test_initial_weights_and_batches_are_the_same_with_a_teacher():
    images = load_images()
    x, labels = images.train_ND[:400].view(2, 200, 64), images.train_N[:400].view(2, 200)
    settings = {"seed": 3, "rate": 0.01, "steps": 20, "batch": 16}
    alone = train_networks((9,), x, labels, **settings)
    mixed = train_networks((9,), x, labels, teacher_SNC=torch.randn(2, 200, 10), alpha=1.0, **settings)
    for one, other in zip(alone.parameters(), mixed.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    for seed in (3, 4):
        again = train_networks((9,), x, labels, **settings | {"seed": seed})
        assert torch.equal(again.biases[0], alone.biases[0]) == (seed == 3)


def test_each_network_learns_its_own_images():
    """Labels and teacher identify each image, which is learned only if they belong to the right images."""
    x, labels = torch.rand(2, 10, 64), torch.stack([torch.arange(10), torch.arange(10).flip(0)])
    teacher = 9 * F.one_hot(labels, 10).float()
    for settings in ({}, {"teacher_SNC": teacher, "temperature": 2.0}):
        networks = train_networks((64,), x, labels, seed=0, rate=0.02, steps=150, batch=8, **settings)
        assert torch.equal(networks(x).argmax(-1), labels)


def test_jitter_moves_that_share_of_the_images(monkeypatch):
    seen = []
    monkeypatch.setattr(
        Networks, "forward", lambda self, x: seen.append(x) or x[..., :10] @ self.weights[0][:, :10]
    )
    x = torch.rand(1, 1, 64) + 0.5
    images, labels = x.expand(1, 50, 64), torch.zeros(1, 50).long()
    # One of nine positions is the image's own.
    for jitter, least, most in ((0.0, 0, 0), (0.25, 0.17, 0.28), (1.0, 0.84, 0.94)):
        seen.clear()
        train_networks((), images, labels, seed=0, rate=0.0, steps=40, jitter=jitter)
        away = (torch.cat(seen) != x).any(-1).float().mean().item()
        assert least <= away <= most


@pytest.mark.parametrize("what", ["seeds", "images", "steps", "batch"])
def test_empty_training_is_refused(what):
    n = {"seeds": 1, "images": 1, "steps": 1, "batch": 1} | {what: 0}
    x, labels = torch.rand(n["seeds"], n["images"], 64), torch.zeros(n["seeds"], n["images"]).long()
    with pytest.raises(ValueError, match=rf"{what} \(0\) must be at least 1"):
        train_networks((4,), x, labels, seed=0, rate=0.1, steps=n["steps"], batch=n["batch"])


def test_no_seed_is_refused():
    with pytest.raises(ValueError, match=r"seeds \(0\) must be at least 1"):
        train_teachers(seeds=0)


# errors and recall


def test_errors_and_recall_are_those_of_scikit_learn():
    logits, labels = torch.randn(3, 200, 10), torch.randint(10, (200,))
    for seed in range(3):
        read = logits[seed].argmax(-1)
        assert count_errors(logits, labels)[seed] == round(200 * (1 - accuracy_score(labels, read)))
        expected = 100 * recall_score(labels, read, labels=[3, 7], average="micro")
        assert recall(logits, labels, (3, 7))[seed] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("chosen", UNSEEN.values())
def test_a_raised_bias_gives_the_digits_their_share(chosen):
    logits = torch.randn(4, 1000, 10) - 5 * torch.isin(torch.arange(10), torch.tensor(chosen))
    bias = raise_bias(logits, chosen, len(chosen) / 10)
    assert bias.shape == (4,)
    for seed in range(4):
        raised = logits[seed].numpy().copy()
        raised[:, list(chosen)] += bias[seed].item()
        assert np.isin(raised.argmax(-1), chosen).sum() == pytest.approx(100 * len(chosen), abs=1)


# the students


def test_each_seed_draws_its_own_images(teachers):
    rows = draw_rows(teachers, 100)
    assert rows.shape == (3, 100)
    assert all(len(set(row)) == 100 and 0 <= min(row) <= max(row) < 897 for row in rows.tolist())
    assert len({tuple(row) for row in rows.tolist()}) == 3
    assert not torch.equal(rows, draw_rows(teachers._replace(seed=1), 100))
    assert draw_rows(teachers, 897).sort().values.tolist() == [list(range(897))] * 3


def test_no_student_starts_as_a_teacher_did(teachers, monkeypatch):
    used, train = [], students.train_networks
    for module in ("students", "networks"):
        monkeypatch.setattr(
            f"minimoe.experiments.digits.{module}.train_networks",
            lambda *a, **k: used.append(k["seed"]) or train(*a, **k),
        )
    for seed in range(4):
        rows = draw_rows(teachers, 10)
        train_students(teachers._replace(seed=seed), (8,), "labels alone", rows, steps=1)
        train_teachers(teachers.images, seeds=1, seed=seed, steps=1)
    assert len(set(used)) == 8


def test_few_images_are_where_a_teacher_helps(teachers):
    few, everything = draw_rows(teachers, 100), draw_rows(teachers, 897)
    wrong = {
        (loss, len(rows[0])): np.array(
            count_errors(train_students(teachers, (64, 64), loss, rows, steps=150)[1], teachers.images.test_N)
        )
        for loss in ("labels alone", "teacher, T = 4")
        for rows in (few, everything)
    }
    assert (wrong["teacher, T = 4", 100] < wrong["labels alone", 100]).all()
    gain_few, gain_all = (wrong["labels alone", n] - wrong["teacher, T = 4", n] for n in (100, 897))
    assert gain_few.mean() > 3 * gain_all.mean()


def test_errors_are_those_of_students_of_each_loss_and_size(teachers):
    errors = student_errors(teachers, 50, steps=5)
    assert set(errors) == set(itertools.product(LOSSES, RATES))
    for loss in ("labels alone", "teacher, T = 8"):
        _, logits = train_students(teachers, (8,), loss, draw_rows(teachers, 50), 5)
        assert errors[loss, (8,)] == count_errors(logits, teachers.images.test_N)
    assert student_errors(teachers, 897, steps=1)["labels alone", (8,)] != errors["labels alone", (8,)]


def test_losses_are_what_their_names_say():
    for name, settings in LOSSES.items():
        if settings is None:
            assert name == "labels alone"
        else:
            temperature, alpha = settings
            assert f"T = {temperature:g}" in name
            assert alpha == (0.5 if "α = ½" in name else 0)


def test_digits_never_seen(teachers):
    no_3, only_7_8 = (unseen_digits(teachers, missing, steps=150) for missing in UNSEEN.values())

    def mean(case, loss, figure):
        return float(np.mean(case[loss][figure]))

    for case in (no_3, only_7_8):
        assert case["labels alone"]["recall"] == [0, 0, 0]
    assert mean(no_3, "teacher, T = 8", "recall") > 30
    raised, raised_alone = (f"{loss}, bias raised" for loss in ("teacher, T = 8", "labels alone"))
    assert mean(no_3, raised, "recall") > 75
    assert mean(no_3, raised, "recall") > mean(no_3, raised_alone, "recall") + 20  # not the bias alone
    assert mean(only_7_8, raised, "recall") > 30 > mean(only_7_8, raised_alone, "recall")
    errors = [mean(no_3, loss, "errors") for loss in (raised, "teacher, T = 8", "labels alone")]
    assert errors == sorted(set(errors))
    assert mean(no_3, "the teacher", "recall") > 85


def test_the_bias_is_chosen_without_the_test_images(teachers, monkeypatch):
    chosen_on, choose = [], students.raise_bias
    monkeypatch.setattr(
        students, "raise_bias", lambda x, *rest: chosen_on.append(x.shape[1]) or choose(x, *rest)
    )
    unseen_digits(teachers, (3,), steps=1)
    assert set(chosen_on) == {len(teachers.images.train_N)}


def test_rates_are_searched_without_the_test_images(tmp_path, monkeypatch):
    def search(spoiled):
        images = load_images()
        other = Images(images.train_ND, images.train_N, torch.zeros(900, 64), images.test_N)
        monkeypatch.setattr(lr_search, "load_images", lambda: other if spoiled else images)
        return lr_search.search((0.01,), seeds=1, splits=1, steps=2)

    monkeypatch.setattr(lr_search, "train_teachers", lambda *a, **k: train_teachers(*a, **k, steps=2))
    found = search(False)
    assert found == search(True)
    monkeypatch.setattr(lr_search, "search", lambda seeds: found)
    (table,) = lr_search.tables(lr_search.measure(RunContext(tmp_path)).detail)
    assert set(cells(table)) == {"64+64, 0.01", "16, 0.01", "8, 0.01"}
    assert all(len(rates) == len(LOSSES) for rates in RATES.values())


# the experiment


def test_tables_show_the_measured_figures(tmp_path, monkeypatch):
    found = measured(tmp_path, monkeypatch)
    few, everything, unseen = DIGITS.tables(json.loads(json.dumps(found.detail)))
    assert (few.name, few.headings) == ("digits-50", ["trained on", "64+64", "16", "8"])
    assert everything.name == "digits-897"
    assert "900 test images, 2 seeds" in few.about
    assert list(cells(few)) == ["the teacher", *LOSSES]
    assert cells(few)["the teacher"][1:] == ["", ""]
    alone, distilled = (
        np.array(found.values[f"errors, 50 images, 8, {loss}"]) for loss in ("labels alone", "teacher, T = 8")
    )
    assert cells(few)["labels alone"][2] == f"{alone.mean():.1f} ±{alone.std(ddof=1):.1f}"
    helped = (distilled < alone).sum()
    assert (
        cells(few)["teacher, T = 8"][2] == f"{distilled.mean():.1f} ±{distilled.std(ddof=1):.1f} ({helped})"
    )
    percent = np.array(found.values["recall, only 7 and 8, the teacher"])
    assert unseen.headings[4] == "only 7 and 8: recall"
    assert cells(unseen)["the teacher"][3] == f"{percent.mean():.1f} ±{percent.std(ddof=1):.1f}"


def test_a_tie_does_not_count_as_help(tmp_path, monkeypatch):
    monkeypatch.setattr(students, "count_errors", lambda logits, labels: [5.0, 5.0])
    few, *_ = DIGITS.tables(measured(tmp_path, monkeypatch).detail)
    assert cells(few)["teacher, T = 1"] == ["5.0 ±0.0 (0)"] * 3


def test_results_repeat_and_differ_by_seed(tmp_path, monkeypatch):
    first, again, other = (measured(tmp_path, monkeypatch, seed=seed).values for seed in (0, 0, 1))
    assert first == again != other


def test_one_seed_has_no_spread(tmp_path, monkeypatch):
    for table in DIGITS.tables(measured(tmp_path, monkeypatch, seeds=1).detail):
        assert "±" not in str(table.rows) + table.about
        assert "1 seed" in table.about


def test_recorded_tables_can_be_made_again():
    path = Path(__file__).parents[2] / "docs" / "results" / "digits.json"
    detail = json.loads(path.read_text(encoding="utf-8"))
    tables = {table.name: cells(table) for table in DIGITS.tables(detail)}
    assert list(tables) == ["digits-100", "digits-897", "digits-unseen"]
    assert tables["digits-100"]["teacher, T = 8"][0] == "62.5 ±9.9 (10)"
    assert list(tables["digits-897"]) == ["the teacher", *LOSSES]


def test_the_figure_shows_the_teachers_probabilities(teachers):
    figure = Figure()
    DIGITS.draw(figure, {"dark_knowledge": json.loads(json.dumps(dark_knowledge(teachers)))})
    panels = figure.axes
    labels = [int(picture.get_ylabel().split()[1]) for picture in panels[::2]]
    assert labels == sorted(set(labels))
    assert len(labels) == 4
    for label, picture, bars in zip(labels, panels[::2], panels[1::2], strict=True):
        shown = torch.tensor(np.asarray(picture.images[0].get_array()), dtype=torch.float32).flatten()
        place = (teachers.images.test_ND == shown).all(-1).nonzero().item()
        assert teachers.images.test_N[place] == label
        for temperature, drawn in zip((1, 4), bars.containers, strict=True):
            x = teachers.test_SNC[0, place].double().numpy() / temperature
            expected = np.exp(x) / np.exp(x).sum()
            heights = [bar.get_height() for bar in drawn]
            np.testing.assert_allclose(heights, expected, atol=1e-5)
            assert int(np.argmax(heights)) == label
            assert [round(bar.get_x() + bar.get_width() / 2) for bar in drawn] == list(range(10))
            assert drawn.get_label() == f"T = {temperature}"
        assert expected.max() < 0.9  # softened


def test_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "digits", partial(digits, teacher_steps=20, steps=5))
    out = tmp_path / "digits.json"
    assert cli.main(["digits", "--seeds", "2", "--json", str(out), "--seed", "3"]) == 0
    assert "labels alone" in capsys.readouterr().out
    data = json.loads(out.read_text())
    assert (data["seeds"], data["seed"], len(DIGITS.tables(data))) == (2, 3, 3)
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert cli.main(["digits", "--seeds", "0"]) == 1
    assert "--seeds (0) must be at least 1" in capsys.readouterr().err
    assert cli.main(["digits", "--json", str(tmp_path / "no" / "digits.json")]) == 1
    assert "create it first" in capsys.readouterr().err
