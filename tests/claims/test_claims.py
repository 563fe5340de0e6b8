"""Claims: verdicts on both sides of every bound; the ledger, its JSON and page; known values of figures."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from minimoe.claims import ledger
from minimoe.claims.claim import FAILS, HOLDS, NOT_BUILT, OPEN, Bound, Claim
from minimoe.claims.html import write_page
from minimoe.claims.registry import CLAIMS, choose
from minimoe.claims.report import duration, print_ledger, summary
from minimoe.cli import main as cli
from minimoe.cli.commands import claims as commands
from minimoe.experiments import context as context_module
from minimoe.experiments.context import RunContext
from minimoe.experiments.experiment import Experiment
from minimoe.experiments.measurement import Measured, Untestable
from minimoe.experiments.model_cost import mixtral
from minimoe.experiments.moe_jobs import moe_jobs

BUILT = [claim for claim in CLAIMS.values() if not claim.not_built]


# Verdicts


def test_all_claims_are_there():
    assert list(CLAIMS) == [
        "half-the-space", "pi", "less-accurate", "wide-answer", "promotion", "accurate-enough", "outliers",
        "much-more-efficient", "specialists", "generalist", "struggled", "moving-data", "small-from-big",
        "copying-is-easy", "reinforcement", "distil-beats-rl", "the-bill", "fits-in-memory", "mixtral",
        "failed-roads",
    ]  # fmt: skip
    assert [id for id, claim in CLAIMS.items() if claim.not_built] == [
        "reinforcement", "distil-beats-rl", "failed-roads"
    ]  # fmt: skip
    for claim in BUILT:
        assert claim.bounds, claim.id
        assert all(bound.why for bound in claim.bounds), claim.id


def figure_at(bound: Bound, by: float) -> float:
    """A figure that clears the bound by this much; below 0 it fails by as much."""
    return bound.least + by if bound.least is not None else bound.most - by


def fabricated(claim: Claim, by: float, spread: float, seeds: int = 3) -> dict[str, list[float]]:
    """Fabricated measurements: every figure clears all its bounds, or the tightest by ``by``."""
    values = {}
    for bound in claim.bounds:
        both = [b for b in claim.bounds if b.figure == bound.figure]
        middle = sum(figure_at(b, 0) for b in both) / 2 if len(both) == 2 else figure_at(bound, by)
        values[bound.figure] = [middle + spread * (seed - (seeds - 1) / 2) for seed in range(seeds)]
    return values


@pytest.mark.parametrize("claim", BUILT, ids=lambda claim: claim.id)
def test_fabricated_measurements_on_both_sides_of_every_bound(claim):
    good = fabricated(claim, by=1.0, spread=0.01)
    assert claim.judge(good).verdict == HOLDS
    for bound in claim.bounds:
        for by, spread, verdict in ((-1.0, 0.01, FAILS), (-0.1, 0.5, OPEN), (0.1, 0.5, OPEN)):
            bad = {bound.figure: [figure_at(bound, by) + spread * (seed - 1) for seed in range(3)]}
            judgement = claim.judge(good | bad)
            assert judgement.verdict == verdict, (bound.figure, by)
            assert bound.what in judgement.reason
            at = [i for i, b in enumerate(claim.bounds) if b is bound]
            assert judgement.outcomes[at[0]] == {FAILS: "broken", OPEN: "open"}[verdict]


def test_a_broken_bound_outweighs_an_open_one():
    claim = Claim("x", "", "", (Bound("a", "this", least=0), Bound("b", "that", most=1)))
    assert claim.judge({"a": [1.0], "b": [0.0]}).verdict == HOLDS
    judgement = claim.judge({"a": [-1.0, 1.5], "b": [3.0, 3.1]})
    assert (judgement.verdict, judgement.outcomes) == (FAILS, ["open", "broken"])
    assert judgement.reason == "that 3.050 ±0.071 (at most 1): broken; others: 1 open"
    with pytest.raises(ValueError, match="x: figure 'b' has a bound and was not measured"):
        claim.judge({"a": [1.0]})


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([2.0], "met"), ([1.9999], "broken"), ([2.0, 2.0], "met"),
        ([2.1, 2.2, 2.3], "met"),  # 0.2 above ±0.1, of which 1.69 would do
        ([2.06, 2.16, 2.26], "open"),  # 0.16 above
        ([1.94, 1.84, 1.74], "open"), ([1.92, 1.82, 1.72], "broken"),
        ([2.1, 2.3], "open"),  # two seeds say little: 4.5 deviations
    ],
)  # fmt: skip
def test_a_mean_must_clear_the_bound_by_more_than_chance(values, outcome):
    assert Bound("a", "a", least=2.0).outcome(values) == outcome
    assert Bound("a", "a", most=-2.0).outcome([-value for value in values]) == outcome


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
def test_a_figure_that_is_not_finite_gets_no_verdict(values):
    with pytest.raises(ValueError, match="there must be finite numbers"):
        Bound("a", "a", least=2.0).outcome(values)


def test_a_bound_has_one_side():
    for limits in ({}, {"least": 1.0, "most": 2.0}):
        with pytest.raises(ValueError, match="a least or a most"):
            Bound("a", "a", **limits)


def test_a_bound_is_parsed_from_a_row():
    row = "8 over 16 | at least 10 dB | error of a sum, of any kind | half, and a tenth"
    bound = Bound.parse(row)
    assert bound == Bound("8 over 16", "error of a sum, of any kind", 10.0, None, " dB", "half, and a tenth")
    assert Bound.parse("a | at most 1e-12x | b | c") == Bound("a", "b", most=1e-12, unit="x", why="c")
    for wrong in ("a | 10 dB | b | c", "a | at least 10 | b", "a | at least ten | b | c"):
        with pytest.raises(ValueError, match="is not a row of the form"):
            Bound.parse(wrong)


# The ledger, its JSON, its page


def fake(id: str, values: dict, units: dict | None = None, **options) -> Claim:
    def measure(context):
        context.on_progress(1.0)
        return Measured(values, {"a": 1}, "a <b>run</b> & more")

    def draw(figure, detail):
        figure.subplots().bar(list(detail), list(detail.values()))

    bounds = (Bound("a", "what <was> measured", least=2.0, unit=" dB", why="because"),)
    experiment = Experiment(measure, draw, units=units or {}, **options)
    return Claim(id, f"The statement of {id}.", "a source", bounds, experiment)


FAKES = [
    fake("good", {"a": [3.0, 3.1, 3.2], "other": [1.0]}, units={"other": " kg"}),
    fake("bad", {"a": [1.0]}),
    fake("wide", {"a": [1.0, 3.2]}, jobs=lambda context: []),
    Claim("absent", "Nobody built it.", "a source", not_built="it is not in this project"),
]


@pytest.fixture
def four(monkeypatch):
    monkeypatch.setattr(commands, "choose", lambda ids: [c for c in FAKES if not ids or c.id in ids])


def test_the_command_prints_writes_and_draws(tmp_path, capsys, four):
    out, path = tmp_path / "out", tmp_path / "claims.json"
    assert cli.main(["claims", "--out", str(out), "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "4 claims, about" in printed
    assert (
        "4 claims: 1 holds here, 1 does not hold here, 1 not testable at this scale, 1 not built."
        in " ".join(printed.split())
    )
    entries = json.loads(path.read_text())
    assert json.loads((out / "claims.json").read_text()) == entries
    keys = {"id", "statement", "source", "measured", "bound", "verdict", "seeds", "seconds"}
    assert all(keys <= entry.keys() for entry in entries)
    assert [entry["verdict"] for entry in entries] == [HOLDS, FAILS, OPEN, NOT_BUILT]
    assert [entry["seeds"] for entry in entries] == [1, 1, 2, 1]
    good = entries[0]
    assert good["measured"]["a"]["values"] == [3.0, 3.1, 3.2]
    assert good["measured"]["a"]["mean"] == pytest.approx(3.1)
    assert good["measured"]["a"]["deviation"] == pytest.approx(0.1)
    assert good["measured"]["a"]["shown"] == "3.10 ±0.10 dB"
    assert good["measured"]["other"]["shown"] == "1 kg"
    assert (good["bound"][0]["least"], good["bound"][0]["outcome"]) == (2.0, "met")
    assert sorted(p.name for p in (out / "pictures").iterdir()) == ["bad.png", "good.png", "wide.png"]


class Reader(HTMLParser):
    """Tags that need closing are closed in order; texts, links, images as a browser would find them."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.ids, self.links, self.images = [], "", set(), [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.add(values.get("id"))
        if tag == "a":
            self.links.append(values["href"])
        if tag == "img":
            self.images.append(values)
        elif tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_self_contained_and_says_what_the_ledger_says(tmp_path, four):
    assert cli.main(["claims", "--out", str(tmp_path / "out"), "--quick"]) == 0
    html = (tmp_path / "out" / "claims.html").read_text()
    page = Reader(html)
    assert not page.open
    assert page.links == [f"#{claim.id}" for claim in FAKES]
    assert {claim.id for claim in FAKES} <= page.ids
    assert len(page.images) == 3
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in page.images)
    assert not re.search(r"""(src|href)=["']?(http|//)|<script|@import|url\(""", html)
    for claim in FAKES:
        assert claim.statement in page.text
    assert "a <b>run</b> & more" in page.text  # escaped
    assert "what <was> measured" in page.text
    assert "minimoe claims good --quick" in page.text
    assert "minimoe claims absent" not in page.text
    assert "2.1 ±1.6 dB" in page.text


@pytest.mark.resume
def test_a_ledger_that_is_killed_resumes(tmp_path, four, capsys, monkeypatch):
    tried, out = [], tmp_path / "out"
    make_entry = ledger.make_entry

    def dies(claim, *arguments):
        tried.append(claim.id)
        if claim.id == "bad" and tried.count("bad") == 1:
            raise KeyboardInterrupt
        return make_entry(claim, *arguments)

    monkeypatch.setattr(ledger, "make_entry", dies)
    assert cli.main(["claims", "--out", str(out)]) == 130
    error = capsys.readouterr().err
    assert "To continue: minimoe claims --out" in error
    assert "--resume" in error
    assert cli.main(["claims", "--out", str(out)]) == 1
    assert "holds an interrupted run" in capsys.readouterr().err
    assert cli.main(["claims", "--out", str(out), "--resume"]) == 0
    assert tried == ["good", "bad", "bad", "wide", "absent"]
    assert cli.main(["claims", "--out", str(out)]) == 1
    assert "holds a finished run" in capsys.readouterr().err


def test_an_untestable_claim_does_not_stop_the_ledger(tmp_path):
    def cannot(context):
        raise Untestable("no processes here")

    claim = replace(FAKES[0], experiment=Experiment(cannot))
    entries = ledger.run([claim, FAKES[1]], RunContext(tmp_path), lambda c: None, lambda e: None)
    assert [e["verdict"] for e in entries] == [OPEN, FAILS]
    assert entries[0]["reason"] == "no processes here"
    write_page(entries, tmp_path, tmp_path / "page.html")
    assert "no processes here" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["claims", "nonsense"], "there is no claim 'nonsense'; choose among half-the-space, pi"),
        (
            ["claims", "pi", "--seeds", "2"],
            "--seeds (2) must be at least 3: claims about training need",
        ),
        (["claims", "pi", "--json", "nowhere/x.json"], "there is no folder nowhere; create it first"),
        (["claims", "pi", "--json", "."], "--json . is a folder; name a file in it"),
        (["claims", "pi", "--data", "nowhere"], "'nowhere' is neither a folder nor a domain"),
        (["claims", "generalist", "--data", "little,physics"], "is neither a folder nor a domain"),
        (["claims", "small-from-big", "--data", "little"], "a sequence needs context + 1"),
        (["claims", "generalist", "--data", "little"], "a sequence needs context + 1"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "little" / "field").mkdir(parents=True)
    for i in range(4):
        (tmp_path / "little" / "field" / f"{i}.txt").write_text(f"line {i} or so. " * 10)
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_claims_come_in_the_ledgers_order():
    assert [claim.id for claim in choose(["mixtral", "pi"])] == ["pi", "mixtral"]
    assert choose([]) == list(CLAIMS.values())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.01, "0.1 s"), (3.21, "3.2 s"), (59.7, "60 s"), (200, "3 min 20 s")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_table_fits_a_hundred_columns(tmp_path, capsys):
    entries = [ledger.make_entry(claim, RunContext(tmp_path), {}) for claim in FAKES]
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    print_ledger(entries, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100
    assert any("what <was> measured" in line and "at least 2 dB" in line and "open" in line for line in lines)
    assert summary(entries[:1]).startswith("1 claim: 1 holds here. Measured on ")


# What the experiments measure


def measure(id: str, tmp_path) -> dict[str, list[float]]:
    """The figures of a claim's experiment, which can be judged and drawn."""
    claim = CLAIMS[id]
    measured = claim.experiment.measure(RunContext(tmp_path, "quick"))
    json.dumps(measured.detail)  # plain data
    assert measured.ran
    assert "{" not in measured.ran
    assert set(claim.experiment.units) <= set(measured.values)
    for other in CLAIMS.values():
        if other.experiment is claim.experiment:
            assert other.judge(measured.values).reason
    claim.experiment.draw(Figure(), json.loads(json.dumps(measured.detail)))
    return measured.values


@pytest.mark.parametrize("claim", [c for c in CLAIMS.values() if c.experiment], ids=lambda c: c.id)
def test_a_figure_has_the_same_unit_in_its_bound_and_in_the_experiment(claim):
    """So ``minimoe experiment`` prints it with its unit, too."""
    assert {b.figure: b.unit for b in claim.bounds} == {
        b.figure: claim.experiment.units.get(b.figure, "") for b in claim.bounds
    }


def test_pi(tmp_path):
    """π between E4M3's 3 and 3.25, E5M2's 3 and 3.5; in bf16 3.140625."""
    values = measure("pi", tmp_path)
    assert values["π in E4M3"][0] == pytest.approx(100 * (3.25 / math.pi - 1))
    assert values["π in E5M2"][0] == pytest.approx(100 * (1 - 3 / math.pi))
    assert values["π in BF16"][0] == pytest.approx(100 * (1 - 3.140625 / math.pi))
    assert values["E4M3"][0] == pytest.approx(0.638, abs=1e-3)  # ζ(3) = 1.2021 -> 1.25: 0.0399 of 2^-4


def test_half_the_space(tmp_path):
    values = measure("half-the-space", tmp_path)
    assert values["tensor"][0] == pytest.approx((1 + 4 / 128) / 2)
    assert 0.5 < values["v3"][0] < 0.51
    assert 0.5 < values["model"][0] < 0.55


def test_less_accurate(tmp_path):
    """Uniform rounding within a binade: the relative error of a product is √2 times that of a factor."""
    values = measure("less-accurate", tmp_path)
    assert values["E4M3"][0] == pytest.approx(3.7, abs=0.1)  # 31.6 dB a factor, as numbers are known to have
    assert values["bf16"][0] == pytest.approx(100 * math.sqrt(2) * 10 ** (-55.6 / 20), rel=0.05)
    assert values["float32"][0] < 1e-4


def test_accumulation(tmp_path):
    """Published: 7.9 % and 0.065 % for uniform numbers, 3.8 % and 0.018 % for normal numbers + 1."""
    values = measure("promotion", tmp_path)
    assert values["uniform [0, 1), plain"][0] == pytest.approx(7.5, abs=1)
    assert values["uniform [0, 1), promoted"][0] < 0.1
    assert values["normal + 1, plain"][0] == pytest.approx(3.5, abs=0.5)
    assert values["plain"][0] == values["normal + 1, plain"][0]
    assert values["mended"][0] < 0.01
    assert values["float32"][0] < 1e-3 < values["tensor core, 14 bits"][0] < values["bf16"][0]


def test_outliers(tmp_path):
    """Published, at a factor of 10^5 and 4096 columns: 6.5 dB for one scale and 29.3 dB for 1×128."""
    values = measure("outliers", tmp_path)
    assert values["tensor"][0] == pytest.approx(6.5, abs=2)
    assert values["1×128"][0] == pytest.approx(29.3, abs=2)


def test_the_bill_the_memory_and_mixtral(tmp_path):
    bill = measure("the-bill", tmp_path)
    assert bill["fewer hours"][0] == pytest.approx(30.84 / 2.788)
    assert bill["cost"][0] == pytest.approx(5.576)
    assert bill["parameters"][0] == pytest.approx(671.03, abs=0.01)
    fit = measure("fits-in-memory", tmp_path)
    assert fit["h800"][0] == pytest.approx(673.15 / 640, abs=1e-3)
    assert fit["bf16 on h800"][0] == pytest.approx(2 * 671.03 / 640, abs=1e-2)
    mixtral = measure("mixtral", tmp_path)
    assert mixtral["layer"][0] < 1e-14
    assert mixtral["parameters"][0] == pytest.approx(46.70, abs=0.01)


def test_a_wrong_layer_is_not_mixtrals(tmp_path, monkeypatch):
    preset = mixtral.preset
    monkeypatch.setattr(mixtral, "preset", lambda name, **sizes: preset(name, **sizes, normalize=False))
    assert CLAIMS["mixtral"].judge(mixtral.measure(RunContext(tmp_path)).values).verdict == FAILS


def test_specialization_in_two_domains_is_not_testable(monkeypatch, tmp_path, corpus):
    """With two domains one of them has half of any expert's tokens by itself."""
    monkeypatch.setattr(context_module, "load_corpus", lambda data: corpus)
    entry = ledger.make_entry(CLAIMS["specialists"], RunContext(tmp_path, "quick"), {})
    assert entry["verdict"] == OPEN
    assert "the corpus has 2 domains and this needs 3 or more" in entry["reason"]


def test_predicted_time_counts_shared_jobs_once(tmp_path, monkeypatch, corpus):
    monkeypatch.setattr(context_module, "load_corpus", lambda data: corpus)
    context = RunContext(tmp_path, "quick")
    both = ledger.predict_seconds([CLAIMS["generalist"], CLAIMS["struggled"]], context)
    alone = ledger.predict_seconds([CLAIMS["struggled"]], context)
    shared = sum(job.seconds("cpu") for job in moe_jobs(context))
    assert alone["struggled"] - both["struggled"] == pytest.approx(shared)


def test_an_experiment_of_two_claims_is_measured_once(tmp_path):
    measured = []
    experiment = Experiment(lambda context: measured.append(1) or Measured({"a": [3.0]}), seconds=(1, 1))
    claims = [replace(FAKES[0], id=id, experiment=experiment) for id in ("one", "two")]
    context = RunContext(tmp_path)
    seconds = ledger.predict_seconds(claims, context)
    assert seconds["one"] > 0 == seconds["two"]
    entries = ledger.run(claims, context, lambda claim: None, lambda entry: None)
    assert [entry["verdict"] for entry in entries] == [HOLDS, HOLDS]
    assert len(measured) == 1
