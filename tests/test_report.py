"""The report: what is on the page, that nothing on it is more than text, and what a browser makes of it."""

from __future__ import annotations

import html
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import Browser, executable
from torch import Tensor, nn

import bnn
from bnn import likelihoods, reporting
from bnn.reporting import baseline as baselines
from bnn.reporting import blocks, page
from bnn.reporting.subject import Subject, subject_of

HOSTILE = ["<script>alert(1)</script>", "a\"b' onload=alert(2) x='", "$x_1$ & {{ 7 * 7 }}"]
TARGET = "</title><img src=x onerror=alert(3)> ($)"
NAMES = ("mean <b>field</b>", "MAP $x$ `y`")


def rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, generator=generator)
    return x, x.sum(1) + 0.3 * torch.randn(n, generator=generator)


def table_model(likelihood: bnn.likelihoods.Likelihood, outputs: int = 1, inputs: int = 3) -> bnn.BNN:
    torch.manual_seed(0)
    last = [nn.Flatten(0)] if outputs == 1 else []
    net = nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs), *last)
    return bnn.BNN(net, bnn.priors.Normal(1.0), likelihood)


def fitted(model: bnn.BNN, data: tuple[Tensor, Tensor], method: bnn.inference.Method | None = None) -> bnn.Posterior:
    method = method or bnn.MeanField(epochs=30, batch_size=None, lr=0.05)
    return bnn.fit(model, data, method, seed=0, compile="eager", progress=False)


class Page(HTMLParser):
    """Tags with their attributes, and the text of the cells of tables."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._open = True

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.tables[-1][-1][-1] += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """A report with everything in it, and hostile names everywhere."""
    train, test = rows(60, 1), rows(40, 2)
    model = table_model(likelihoods.Gaussian())
    posteriors = {NAMES[0]: fitted(model, train), NAMES[1]: fitted(model, train, bnn.MAP(epochs=30))}
    path = tmp_path_factory.mktemp("report") / "report.html"
    return bnn.report(
        posteriors, train, path, held_out=test, columns=HOSTILE, target=TARGET, title="<script>alert(4)</script>",
        command="bnn fit --data 'x<y>.csv' && echo </pre><script>alert(5)</script>",
    )  # fmt: skip


@pytest.fixture(scope="module")
def parsed(written) -> Page:
    return Page(written.read_text(encoding="utf-8"))


def test_the_page_stands_alone(written, parsed):
    text = written.read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    addresses = [
        value for _, attributes in parsed.tags for name, value in attributes.items() if name in ("src", "href")
    ]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"url\(|@import", text)
    (policy,) = (meta["content"] for meta in parsed.of("meta") if meta.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:")


def test_hostile_names_are_text(written, parsed):
    assert len(parsed.of("script")) == 1  # the page's own
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert all(attributes["src"].startswith("data:image/") for attributes in parsed.of("img"))
    assert not parsed.of("b")
    text = written.read_text(encoding="utf-8")
    assert "<script>alert" not in text
    (columns,) = (table for table in parsed.tables if table[0][:2] == ["column", "mean"])
    assert [row[0] for row in columns[1:]] == HOSTILE
    for said in (TARGET, *NAMES, "<script>alert(5)</script>"):
        assert html.escape(said, quote=False) in text.replace("&#34;", '"').replace("&#39;", "'")


def test_hostile_names_are_not_text_without_escaping(written, tmp_path, patch_line):
    """Control: the check above sees a page whose template does not escape."""
    patch_line(page, "_page", "autoescape=True", "autoescape=False")
    section = blocks.Section("data", "Data", [blocks.Text(HOSTILE[0])])
    assert len(Page(page._page("title", [section])).of("script")) == 2


def test_every_picture_says_what_is_on_it(parsed):
    pictures = parsed.of("img")
    assert len(pictures) >= 7
    assert all(len(image["alt"]) > 20 for image in pictures)


def test_every_part_is_there_and_linked(parsed):
    names = ["short", "scores", "calibration", "cases", "trust", "comparison", "training", "data", "model", "again"]
    assert [section["id"] for section in parsed.of("section")] == names
    assert [link["href"] for link in parsed.of("a")] == ["#main", *(f"#{name}" for name in names)]


def test_scores_are_those_of_the_analysis(tmp_path, parsed):
    """The numbers on the page against `bnn.analysis.scores`, and the baseline's against scikit-learn by hand."""
    from sklearn.linear_model import RidgeCV

    train, test = rows(60, 1), rows(40, 2)
    posterior = fitted(table_model(likelihoods.Gaussian()), train)
    found = bnn.analysis.scores(posterior.predict(test[0]), test[1])
    (table,) = (table for table in parsed.tables if table[0][0] == "score")
    lines = {row[0]: row[1:] for row in table[1:]}
    said = f"{found['rmse'].mean:.4g} ± {found['rmse'].standard_error:.2g}"
    assert lines["root mean squared error"][0] == said
    x = (train[0] - train[0].mean(0)) / train[0].std(0, correction=0)
    new = (test[0] - train[0].mean(0)) / train[0].std(0, correction=0)
    ridge = RidgeCV(np.logspace(-3, 4, 15)).fit(x.numpy(), train[1].numpy())
    error = float(np.sqrt(((ridge.predict(new.numpy()) - test[1].numpy()) ** 2).mean()))
    head = table[0]
    assert float(lines["root mean squared error"][head.index("ridge regression") - 1].split(" ")[0]) == pytest.approx(
        error, rel=1e-3
    )
    difference = float(lines["root mean squared error"][head.index("difference") - 1].split(" ")[0].replace("−", "-"))
    assert difference == pytest.approx(found["rmse"].mean - error, abs=2e-3)


def test_the_surprising_rows_are_those_of_the_least_density(parsed):
    train, test = rows(60, 1), rows(40, 2)
    log_p = fitted(table_model(likelihoods.Gaussian()), train).predict(test[0]).log_prob(test[1])
    uncertain, surprising = (table for table in parsed.tables if table[0][0] == "row")
    assert [int(row[0]) for row in surprising[1:]] == log_p.argsort()[:8].tolist()
    spread = fitted(table_model(likelihoods.Gaussian()), train).predict(test[0]).std
    assert [int(row[0]) for row in uncertain[1:]] == spread.argsort(descending=True)[:8].tolist()
    assert surprising[0][1:4] == HOSTILE


def subject(likelihood, outputs, data, test=None, method=None, **options) -> Subject:
    inputs = data[0].flatten(1).shape[1]
    model = table_model(likelihood, outputs, inputs)
    options = {"columns": None, "classes": None, "target": "y", "level": 0.9, "seed": 0, **options}
    return subject_of(fitted(model, data, method or bnn.MAP(epochs=3)), data, test, **options)


def test_the_baseline_of_classes_is_logistic_regression():
    """For labels, and for yes and no; its numbers by hand, up to where its solver stops."""
    from sklearn.linear_model import LogisticRegressionCV

    x, new = (rows(90, seed)[0] for seed in (1, 2))
    y, y_new = ((3 * inputs[:, 0]).round().clamp(-1, 1).long() + 1 for inputs in (x, new))
    found = baselines.baseline(subject(likelihoods.Categorical(), 3, (x, y), (new, y_new)))
    assert found.title == "logistic regression"
    scaled, told = (((inputs - x.mean(0)) / x.std(0, correction=0)).numpy() for inputs in (x, new))
    own = LogisticRegressionCV(
        Cs=np.logspace(-4, 4, 9),
        cv=5,
        scoring="neg_log_loss",
        max_iter=2000,
        use_legacy_attributes=False,
        l1_ratios=(0,),
    ).fit(scaled, y.numpy())
    logs = torch.as_tensor(own.predict_log_proba(told))
    assert found.scores["nll"].mean == pytest.approx(-float(logs[torch.arange(90), y_new].mean()), rel=2e-2)
    yes = baselines.baseline(subject(likelihoods.Bernoulli(), 1, (x, (y > 0).float()), (new, (y_new > 0).float())))
    assert yes.title == "logistic regression"
    assert yes.scores["accuracy"].mean > 0.85


def test_the_baseline_of_classes_is_their_shares_where_there_are_too_many_numbers(monkeypatch):
    monkeypatch.setattr(baselines, "_MOST", 89)
    x, y = torch.randn(30, 3), torch.tensor([0] * 18 + [1] * 9 + [2] * 3)
    found = baselines.baseline(subject(likelihoods.Categorical(), 3, (x, y)))
    assert found.title == "majority class"
    assert found.scores["accuracy"].mean == 0.6
    shares = torch.tensor([19, 10, 4]) / 33
    assert found.scores["nll"].mean == pytest.approx(-float(shares.log()[y].mean()), rel=1e-5)
    yes = baselines.baseline(subject(likelihoods.Bernoulli(), 1, (x, (y > 0).float())))
    p = torch.tensor([19, 13]) / 32
    assert yes.scores["nll"].mean == pytest.approx(-float(p.log()[(y > 0).long()].mean()), rel=1e-5)


def test_the_baseline_of_counts_has_no_density_to_compare():
    x = torch.randn(30, 3)
    found = baselines.baseline(subject(likelihoods.Poisson(), 1, (x, torch.arange(30.0) % 4)))
    assert "log_density" not in found.scores
    assert {"rmse", "crps"} <= set(found.scores)


def whole(tmp_path, likelihood, outputs, data, **options) -> Page:
    posterior = fitted(table_model(likelihood, outputs, data[0].shape[1]), data, bnn.MAP(epochs=3))
    made = bnn.report(posterior, data, tmp_path / "a.html", **options)
    return Page(made.read_text(encoding="utf-8"))


def test_without_held_out_rows_the_page_says_so(tmp_path):
    found = whole(tmp_path, likelihoods.Gaussian(), 1, rows(20, 0))
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "no held-out rows were given" in text
    assert "training rows" in text
    assert "comparison" not in [section["id"] for section in found.of("section")]


def test_one_input_gives_a_band_and_two_a_map(tmp_path):
    x, y = rows(20, 0)
    whole(tmp_path, likelihoods.Gaussian(), 1, (x[:, :1], y))
    assert "The prediction over its input" in (tmp_path / "a.html").read_text(encoding="utf-8")
    whole(tmp_path, likelihoods.Categorical(), 2, (x[:, :2], (y > 0).long()), classes=["<no>", "yes"])
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "Where it is unsure, and why" in text
    assert "&lt;no&gt;" in text


@pytest.mark.parametrize(
    ("likelihood", "outputs", "target"),
    [
        (likelihoods.Poisson(), 1, lambda y: y.abs().round()),
        (likelihoods.Gaussian(), 2, lambda y: torch.stack([y, -y], 1)),
        (likelihoods.HeteroscedasticGaussian(), 2, lambda y: y),
        (likelihoods.StudentT(), 1, lambda y: y),
        (likelihoods.Gaussian(missing="mask"), 1, lambda y: torch.where(y > 1, torch.nan, y)),
        (likelihoods.Bernoulli(), 2, lambda y: torch.stack([y > 0, y < 1], 1).float()),
        (likelihoods.Ordinal(3), 1, lambda y: (y > 0).long() + (y > 1).long()),
    ],
)
def test_every_kind_of_target_has_a_report(tmp_path, likelihood, outputs, target):
    x, y = rows(24, 0)
    found = whole(tmp_path, likelihood, outputs, (x, target(y)))
    assert len(found.of("section")) == 9


def test_censored_targets_have_a_report(tmp_path):
    x, y = rows(24, 0)
    data = (x, torch.stack([y, y], 1))
    posterior = fitted(table_model(likelihoods.Censored(likelihoods.Gaussian())), data, bnn.MAP(epochs=3))
    found = Page(bnn.report(posterior, data, tmp_path / "a.html").read_text(encoding="utf-8"))
    assert len(found.of("section")) == 9
    assert "No baseline: targets are intervals" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_chains_and_images_have_a_report(tmp_path):
    torch.manual_seed(0)
    images, y = torch.rand(24, 1, 4, 4), torch.arange(24) % 2
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    model = bnn.BNN(net, bnn.priors.Normal(1.0), likelihoods.Categorical())
    method = bnn.HMC(num_samples=20, warmup=20, chains=2)
    posterior = fitted(model, (images, y), method)
    text = bnn.report(posterior, (images, y), tmp_path / "a.html").read_text(encoding="utf-8")
    assert "Do the chains agree?" in text
    found = Page(text)
    assert [figure["class"] for figure in found.of("figure")].count("photographs") == 1


def test_the_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.html"
    path.write_text("before")

    def broken(self, *args, **options):
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="full"):
        page._write(path, "after")
    assert path.read_text() == "before"
    assert [found.name for found in tmp_path.iterdir()] == ["a.html"]
    monkeypatch.undo()
    page._write(path, "after")
    assert path.read_text() == "after"
    assert [found.name for found in tmp_path.iterdir()] == ["a.html"]
    ordinary = tmp_path / "b.html"
    ordinary.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_wrong_arguments_are_told_in_words(tmp_path):
    data = rows(20, 0)
    posterior = fitted(table_model(likelihoods.Gaussian()), data, bnn.MAP(epochs=1))
    with pytest.raises(ValueError, match="3 columns, and there are 2 names"):
        bnn.report(posterior, data, tmp_path / "a.html", columns=["a", "b"])
    with pytest.raises(ValueError, match="no posterior"):
        bnn.report({}, data, tmp_path / "a.html")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        bnn.report(posterior, data, tmp_path / "nowhere" / "a.html")
    with pytest.raises(ValueError, match=r"held_out: x has 20 rows, y has shape \(19,\)"):
        bnn.report(posterior, data, tmp_path / "a.html", held_out=(data[0], data[1][1:]))
    with pytest.raises(ValueError, match=r"data is \(x, y\)"):
        bnn.report(posterior, data[0], tmp_path / "a.html")
    assert not list(tmp_path.iterdir())


def test_the_name_is_the_function_also_after_the_package_was_imported():
    assert bnn.report is reporting.report
    assert callable(bnn.report)


def test_large_drawings_become_pixels(monkeypatch):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    ax.plot([0, 1])
    assert blocks.picture(ax, "a", "b").source.startswith("data:image/svg+xml;base64,")
    monkeypatch.setattr(blocks, "_VECTORS", 100)
    assert blocks.picture(ax, "a", "b").source.startswith("data:image/png;base64,")


# --------------------------------------------------------------------------------------------------------- a browser

needs_browser = pytest.mark.skipif(executable() is None, reason="no Chromium (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(executable(), tmp_path_factory.mktemp("profile")) as found:
        yield found


def complaints(browser: Browser) -> list[dict]:
    return browser.of("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")


def requests(browser: Browser, path: Path) -> list[str]:
    """What the page asked for beside itself and what it holds."""
    asked = [found["request"]["url"] for found in browser.of("Network.requestWillBeSent")]
    assert path.resolve().as_uri() in asked  # requests are seen at all
    return [url for url in asked if url != path.resolve().as_uri() and not url.startswith("data:")]


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (375, False), (375, True)])
def test_a_browser_shows_it_without_a_word(browser, written, width, dark):
    browser.open(written, width=width, dark=dark)
    assert complaints(browser) == []
    assert requests(browser, written) == []
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    images = browser.run("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
    assert len(images) >= 7
    assert all(images)
    assert browser.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark


@needs_browser
def test_the_checks_of_the_browser_see_what_they_look_for(browser, written, tmp_path):
    """Control: a page with a script of its own, a picture from elsewhere and a table that is too wide."""
    text = written.read_text(encoding="utf-8")
    bad = '<img src="http://127.0.0.1:9/x.png"><script>console.error("no")</script><p style="width:900px">wide</p>'
    path = tmp_path / "bad.html"
    path.write_text(text.replace("<main", bad + "<main"), encoding="utf-8")
    browser.open(path, width=375)
    said = str(complaints(browser))
    assert "Content Security Policy" in said  # both the script and the picture are stopped
    assert browser.run("document.documentElement.scrollWidth > 375")
    free = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text(encoding="utf-8"))
    path.write_text(free, encoding="utf-8")
    browser.open(path, width=375)
    assert complaints(browser)
    assert requests(browser, path) == ["http://127.0.0.1:9/x.png"]


@needs_browser
def test_tables_are_sorted_by_keyboard(browser, written):
    browser.open(written)
    column = "[...document.querySelectorAll('#scores tbody tr')].map(row => row.cells[1].dataset.key)"
    before = [float(value) for value in browser.run(column)]
    browser.run("document.querySelectorAll('#scores th button')[0].focus()")
    browser.press("Tab")
    assert browser.run("document.activeElement.textContent") == "this model"
    browser.press("Enter")
    assert [float(value) for value in browser.run(column)] == sorted(before)
    assert browser.run("document.activeElement.parentElement.getAttribute('aria-sort')") == "ascending"
    browser.press("Enter")
    assert [float(value) for value in browser.run(column)] == sorted(before, reverse=True)
    assert complaints(browser) == []


@needs_browser
def test_everything_that_scrolls_or_leads_on_is_reached_by_tab(browser, written):
    browser.open(written, width=375)
    wanted = browser.run("document.querySelectorAll('a, button, pre, .wide').length")
    browser.run("window.seen = new Set(); document.addEventListener('focusin', e => seen.add(e.target))")
    for _ in range(wanted):
        browser.press("Tab")
    assert browser.run("[...document.querySelectorAll('a, button, pre, .wide')].filter(e => !seen.has(e)).length") == 0


@needs_browser
def test_text_is_readable_on_either_ground(browser, written):
    """Contrast of text against the page is at least 4.5 (WCAG 2.2, 1.4.3), and the two schemes differ."""
    contrast = """(() => {
      const light = (rgb) => {
        const part = rgb.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
          .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * part[0] + 0.7152 * part[1] + 0.0722 * part[2];
      };
      const ground = light(getComputedStyle(document.body).backgroundColor);
      const ratios = [...document.querySelectorAll("p, a, h2, td, figcaption, caption, .tag")].map((element) => {
        const ink = light(getComputedStyle(element).color);
        return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
      });
      return [ground, Math.min(...ratios)];
    })()"""
    grounds = []
    for dark in (False, True):
        browser.open(written, dark=dark)
        ground, least = browser.run(contrast)
        grounds.append(ground)
        assert least >= 4.5
    assert grounds[0] > 0.9
    assert grounds[1] < 0.05
