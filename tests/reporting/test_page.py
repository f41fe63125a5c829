"""The page of a report: its markup, and how a browser shows it."""

import html
import html.parser
import io
import re
import shutil
import subprocess

import keras
import pytest
from builders import BUILDERS, build
from keras import layers

import filterprune

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
VOID = {"meta", "br", "rect", "path"}


class Parser(html.parser.HTMLParser):
    """Notes tags, attributes and text; complains of tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self._open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def report_on(name, sparsity=0.5):
    masked = filterprune.wrap_model(build(name))
    filterprune.prune(masked, sparsity)
    return filterprune.analyze(masked)


def run_browser(path, *options):
    """What Chromium prints for a page."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--hide-scrollbars", f"--user-data-dir={path.parent / 'profile'}"]
    done = subprocess.run(
        [*command, *options, path.as_uri()], capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def after(page, script, tmp_path):
    """What a script that runs behind the page puts into `result`."""
    path = tmp_path / "page.html"
    wrapped = (
        f"<script>{{ let result = ''; {script};"
        "const out = document.createElement('pre'); out.id = 'result';"
        "out.textContent = result; document.body.append(out); }</script></body>"
    )
    path.write_text(page.replace("</body>", wrapped), encoding="utf-8")
    dom = run_browser(path, "--dump-dom")
    return html.unescape(re.search(r'<pre id="result">(.*?)</pre>', dom, re.S)[1])


@pytest.mark.parametrize("name", BUILDERS)
def test_the_page_has_all_of_the_report(name):
    report = report_on(name)
    page = Parser(report.to_html())
    text = "\n".join(page.texts)
    for node in report.nodes:
        assert node.name in text
    for layer in report.layers:
        assert f"{layer.after.params:,}" in text
    for group in report.fixed:
        assert group.reason in text
    assert f"MACs: {report.before.macs:,} \u2192 {report.after.macs:,}" in text
    assert page.tags.count("svg") == 1
    assert page.tags.count("table") == 2


def test_the_page_needs_no_other_file():
    text = report_on("plain").to_html()
    page = Parser(text)
    names = {name for _, name, _ in page.attributes}
    assert not names & {"src", "href", "srcset", "action", "xlink:href", "data"}
    assert not {"link", "iframe", "img", "object"} & set(page.tags)
    assert "url(" not in text and "@import" not in text
    assert set(re.findall(r"https?://[^\"]*", text)) == {"http://www.w3.org/2000/svg"}


def test_names_are_no_markup():
    evil = "<img onerror=alert(1)>&\"'$x"
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, name=evil), layers.Dense(2)], name=evil
    )
    report = filterprune.analyze(model)
    for text in (report.to_html(), report._repr_html_()):
        page = Parser(text)
        assert "img" not in page.tags
        assert evil in "".join(page.texts)
    assert ("svg", "role", "img") in Parser(report.to_html()).attributes


def test_colours_follow_what_is_removed():
    report = report_on("plain", 0.0)
    assert 'class="gone"' not in report.to_html()
    masked = filterprune.wrap_model(build("plain"))
    filterprune.prune(masked, 0.0, overrides={"conv1": 0.25, "hidden": 0.75})
    page = filterprune.analyze(masked).to_html()
    shades = re.findall(r'class="gone"[^>]*fill-opacity="([\d.]+)"', page)
    assert [float(shade) for shade in shades] == [0.29, 0.63]  # 25 % and 75 %
    assert len(re.findall('class="box fixed"', page)) == 1


class Rolled(layers.Layer):
    """Couples all channels, and nobody has told filterprune how."""

    def call(self, x):
        return keras.ops.cumsum(x, axis=-1) + keras.ops.flip(x, axis=-1)

    def compute_output_shape(self, input_shape):
        return input_shape


def test_a_plain_model_says_so_and_what_is_not_understood_is_listed():
    inputs = keras.Input((8,))
    x = Rolled(name="odd")(layers.Dense(6, name="before")(inputs))
    report = filterprune.analyze(keras.Model(inputs, layers.Dense(2)(x)))
    page = report.to_html()
    assert "Without gates" in page
    assert "Not understood" in page
    assert 'class="box barrier"' in page
    assert "Not understood" in report._repr_html_()


def test_notebooks_get_tables_only():
    report = report_on("residual")
    page = Parser(report._repr_html_())
    assert page.tags.count("table") == 2
    assert not {"svg", "script", "style", "html"} & set(page.tags)
    assert f"{report.after.params:,}" in "".join(page.texts)
    assert len(report._repr_html_()) < 8000


@browser
class TestInABrowser:
    def test_headings_sort(self, tmp_path):
        script = """
            const names = () => [...document.querySelectorAll(
                'table.sortable tbody td:first-child')].map(td => td.textContent);
            const heads = [...document.querySelectorAll('table.sortable th')];
            const click = i => {
                heads[i].firstElementChild.click();
                return names().join(' ') + ' ' + heads[i].getAttribute('aria-sort');
            };
            result = [names().join(' '), ...[4, 4, 0, 0].map(click)].join(';')
        """
        found = after(report_on("residual").to_html(), script, tmp_path).split(";")
        rows = {r["layer"]: r["params"] for r in report_on("residual").rows()}
        by_name = sorted(rows)
        by_size = sorted(rows, key=lambda name: -rows[name])
        assert found[0].split() == list(rows)
        assert [rows[n] for n in found[1].split()[:-1]] == [rows[n] for n in by_size]
        assert found[1].endswith("descending")
        assert [rows[n] for n in found[2].split()[:-1]] == [
            rows[n] for n in by_size[::-1]
        ]
        assert found[2].endswith("ascending")
        assert found[3] == f"{' '.join(by_name)} ascending"
        assert found[4] == f"{' '.join(by_name[::-1])} descending"

    def test_the_graph_is_drawn_and_can_be_enlarged(self, tmp_path):
        script = """
            const svg = document.querySelector('#graph svg');
            const box = svg.getBoundingClientRect();
            document.querySelector('[data-zoom="1.25"]').click();
            const clipped = [...svg.querySelectorAll('.box')].filter(g =>
                [...g.querySelectorAll('text')].some(t =>
                    t.getBBox().width + 8 > g.querySelector('.base').getBBox().width));
            result = [box.width > 100, box.height > 200, clipped.length,
                svg.getBoundingClientRect().width / box.width].join(' ')
        """
        page = report_on("residual").to_html()
        assert after(page, script, tmp_path) == "true true 0 1.25"

    def test_a_tap_tells_about_a_box(self, tmp_path):
        script = """
            const about = document.querySelector('#about');
            const tap = what => {
                what.dispatchEvent(new MouseEvent('click', {bubbles: true}));
                return about.hidden ? 'hidden' : about.textContent;
            };
            const head = [...document.querySelectorAll('#graph text.name')].at(-1);
            result = [tap(head), tap(document.querySelector('#graph svg'))].join(';')
        """
        found = after(report_on("plain").to_html(), script, tmp_path)
        assert found == "head (Dense): 10\nstays: reaches the output `head`;hidden"

    def test_nothing_sticks_out_at_phone_width(self, tmp_path):
        """In a frame as wide as a phone; a window cannot be made so narrow."""
        page = html.escape(report_on("squeeze_excite").to_html())
        host = f"""<!DOCTYPE html><body>
            <iframe srcdoc="{page}" style="width: 390px; height: 800px; border: 0">
            </iframe><script>addEventListener('load', () => {{
                const inner = document.querySelector('iframe').contentDocument;
                document.title = inner.documentElement.scrollWidth;
            }})</script></body>"""
        path = tmp_path / "phone.html"
        path.write_text(host, encoding="utf-8")
        assert "<title>390</title>" in run_browser(path, "--dump-dom")

    @pytest.mark.parametrize("dark", [False, True])
    def test_it_follows_the_scheme_of_the_reader(self, dark, tmp_path):
        image = pytest.importorskip("PIL.Image")
        path = tmp_path / "page.html"
        path.write_text(report_on("concat").to_html(), encoding="utf-8")
        options = ["--window-size=900,1200", f"--screenshot={tmp_path / 'page.png'}"]
        options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
        run_browser(path, *options)
        shot = image.open(io.BytesIO((tmp_path / "page.png").read_bytes()))
        assert shot.size == (900, 1200)
        assert (sum(shot.convert("RGB").getpixel((1, 1))) < 128) == dark
        assert len(shot.convert("RGB").getcolors(10**6)) > 100
