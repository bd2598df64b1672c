"""Reports of runs: what they tell, that they load nothing, are well-formed and small, and bear what workdirs lack."""

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import conftest
import numpy as np
import pytest
from PIL import Image

from sintrovae_jax import config
from sintrovae_jax.errors import UserError
from sintrovae_jax.reports import comparison, curves, pages, pictures, reading, report
from sintrovae_jax.tools import compare

VOID = {"meta", "img", "input", "link", "br", "hr"}
LOADING = {"src", "href", "srcset", "data", "poster", "action", "xlink:href"}


class Page(HTMLParser):
    """Checks that elements nest, and collects what a reader and a browser find."""

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.loads, self.ids, self.texts, self.tags = [], [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in LOADING]
        self.ids += [value for name, value in attrs if name == "id"]
        assert not [name for name, _ in attrs if name.startswith("on")], "no handlers in attributes"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):  # of SVG
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(filter(None, self.texts))


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of a run of 60 steps, with its VAE phase, a milestone, pictures and evaluation."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def written(workdir: Path) -> Page:
    return Page(report.write(workdir))


def test_training_ends_with_a_report_that_tells_what_was_trained(trained):
    page = Page(trained / "report.html")
    results, made = (json.loads((trained / name).read_text()) for name in ("results.json", "run.json"))
    text = page.text
    for said in ("finished", "60 of 60", "soft_intro", "gaussians8", "to step 20", "at 40", "1 × cpu"):
        assert said in text, said
    for name, version in made["sessions"][0]["versions"].items():
        assert f"{name} {version}" in text
    for metric in ("gnelbo", "kl", "jsd"):
        at = page.texts.index(metric)
        shown = float(next(t for t in page.texts[at + 1 :] if t).replace("−", "-"))
        assert shown == pytest.approx(results[metric], rel=1e-4), metric
    recipe = config.flatten(config.read_recipe("gaussians8"))
    at = page.texts.index("train.batch_size")
    assert [t for t in page.texts[at:] if t][:3] == ["train.batch_size", "32", str(recipe["train.batch_size"])]
    for title in ("Losses", "kl_gap", "learning_rate", "KL divergences", "examples_per_second"):
        assert title in page.texts
    assert page.tags.count("svg") == len(curves.of_run(reading.read(trained)))
    place = re.search(r"done: (\S+)", (trained.parent / "log").read_text()).group(1)
    assert f"--workdir {place} --config.train.steps=120" in text


def test_a_page_loads_nothing_and_has_each_id_once(trained):
    page = Page(trained / "report.html")
    assert len(page.loads) > 10
    assert all(load.startswith(("#", "data:image/")) for load in page.loads)
    assert len(page.ids) == len(set(page.ids))
    refers = {load[1:] for load in page.loads if load.startswith("#")}
    text = (trained / "report.html").read_text()
    assert refers | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    assert not re.search(r"url\((?!#)|@import|https?:", text)
    assert "#0102" not in text, "all colours are the page's"


def test_the_slider_has_the_pictures_of_training_and_the_last_ones(run):
    taken = reading.read(run)
    assert {name: [step for step, _ in frames] for name, frames in taken.pictures.items()} == {
        name: [30] for name in ("samples", "reconstructions", "interpolations")
    }
    text = report.write(run).read_text()
    assert re.findall(r'data-step="(\d+)"', text) == ["30", "60"] * 3
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)"[^>]*alt="samples at step 30"', text)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown[0]))))
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(run / "figures/samples_0000030.png").convert("RGB")))


def test_what_files_say_comes_out_as_text(run):
    evil = "<script>alert(1)</script>"
    moved = run.parent / "<img src=x onerror=alert(2)>"
    run.rename(moved)
    for name, key in (("config.json", "data"), ("run.json", "recipe")):
        stored = json.loads((moved / name).read_text())
        stored[key][{"data": "dir", "recipe": "name"}[key]] = evil
        (moved / name).write_text(json.dumps(stored))
    results = json.loads((moved / "results.json").read_text()) | {evil: 1.0, "features": evil + "\x00\x1b[2J\udce9"}
    (moved / "results.json").write_text(json.dumps(results | {"skipped": 1, "skipped_files": [evil]}))
    lines = (moved / "metrics.csv").read_text().splitlines()
    columns = [lines[0] + "," + evil, *(line + ",1" for line in lines[1:])]
    (moved / "metrics.csv").write_text("\n".join(columns) + "\n")
    shutil.copy(moved / "figures" / "samples.png", moved / "figures" / "<i>&'\".png")
    page = written(moved)
    text = (moved / "report.html").read_text()
    assert evil not in text and "<img src=x" not in text and "<i>&" not in text
    assert page.tags.count("script") == 1
    assert page.text.count(evil) >= 5
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text)
    (policy,) = re.findall(r"script-src '(sha256-[^']+)'", text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert policy == "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def absent(workdir: Path) -> str:
    return " ".join(reading.read(workdir).missing)


def test_a_report_names_what_is_missing_and_tells_the_rest(run):
    for lost in ("results.json", "figures", "run.json", "metrics.csv"):
        (shutil.rmtree if (run / lost).is_dir() else Path.unlink)(run / lost)
        assert f"{lost} is absent" in absent(run) and "config.json" not in absent(run)
    page = written(run)
    assert "Not in this report" in page.texts and "train.batch_size" in page.texts
    assert "Losses" not in page.texts and "gnelbo" not in page.texts and "img" not in page.tags


DAMAGED = [
    ("metrics.csv", b"step,seconds\n1,2\n"),
    ("metrics.csv", b"\xff\xfe\x00"),
    ("results.json", b'{"jsd": '),
    ("run.json", b'{"sessions": 7, "recipe": [], "data": {"skipped_files": 3}}'),
    ("config.json", b'{"data": {"source": 3}, "train": "x"}'),
    ("config.json", b"[1, 2]"),
]


def test_a_report_of_damaged_files(run):
    (run / "figures" / "samples.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    for name, content in DAMAGED:
        (run / name).write_bytes(content)
        assert name == "run.json" or name in absent(run)
    page = written(run)
    assert "cannot be shown" in page.text and page.tags.count("img") == 3 + 3, "the other pictures are shown"


def test_a_cut_off_metrics_csv_has_the_rows_before(run):
    text = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(text[:-7])
    assert list(reading.read(run).steps) == [5.0 * i for i in range(1, 12)]
    assert "Losses" in written(run).texts


def test_a_report_of_checkpoints_alone_and_none_of_other_folders(run, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(run / "checkpoints", alone / "checkpoints")
    out = conftest.here(["--mode", "report", "--workdir", str(alone)])
    assert out[1] == 0 and f"wrote {alone / 'report.html'}" in out[0]
    page = Page(alone / "report.html")
    assert "at step 60" in page.text and "cannot go on" in page.text
    (tmp_path / "other").mkdir()
    for args, said in (
        (["--workdir", str(tmp_path / "other")], "is no workdir"),
        (["--workdir", str(tmp_path / "none")], "is no workdir"),
        (["--workdir", str(alone), "--config.seed=1"], "takes no --config.seed"),
        (["--workdir", str(alone), "--step", "60"], "takes --workdir alone"),
        ([], "no workdir given"),
    ):
        text, code = conftest.here(["--mode", "report", *args])
        assert code == 2 and said in text and text.count("\n") == 1, text
    assert not list((tmp_path / "other").iterdir())


def noise(path: Path, side: int, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(
        path, compress_level=0
    )


def test_a_page_stays_below_5_mb_with_many_large_pictures(run):
    (run / "figures" / "samples_0000030.png").unlink()
    noise(run / "noise.png", 300, 0)
    for step in range(1, 71):
        (run / "figures" / f"samples_{step:07d}.png").symlink_to(run / "noise.png")
    noise(run / "figures" / "samples.png", 1000, 1)  # 3 MB
    page = written(run)
    assert 1_000_000 < (run / "report.html").stat().st_size < 5_000_000
    steps = [int(step) for step in re.findall(r'alt="samples at step (\d+)"', (run / "report.html").read_text())]
    assert steps[0] == 1 and steps[-1] == 70 and 10 < len(steps) <= pictures.FRAMES
    gaps = np.diff(steps)
    assert gaps.max() - gaps.min() <= 1
    assert f"samples: {len(steps)} of 70" in page.text
    assert "as JPEG" in page.text


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    with pytest.raises(ValueError, match="pixels"):
        pictures.read(tmp_path / "bomb.png", 10**6)


def test_a_kl_gap_below_0_is_marked_and_long_curves_keep_their_extremes():
    steps = np.arange(1.0, 5001)
    values = np.ones(5000)
    values[[1234, 4000]] = -3, 7
    panel = curves.panel("kl_gap", [curves.Line("kl_gap", steps, values)], reading.Phases(vae=100, milestones=(4000,)))
    assert panel.below == ("Below 0 at 1 of 5000 rows, at step 1235.",)
    for variable in ("--alert", "--band", "--series-0", "--muted"):
        assert f"var({variable})" in panel.svg
    kept = curves.thinned(steps, values, 100)
    assert len(kept[0]) <= 200 and {-3, 7} <= set(kept[1]) and (np.diff(kept[0]) > 0).all()
    assert "var(--alert)" not in curves.panel("kl_gap", [curves.Line("kl_gap", steps, steps)], reading.Phases()).svg


def test_a_failure_to_write_the_report_is_one_warning(run, tmp_path):
    """Of a run that resumes at its last step, without results: it only finishes."""
    (run / "results.json").unlink()
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    (run / "report.html" / "in the way").touch()
    bare = ("--config.eval.evaluators=()", "--config.checkpoint.best=")
    out = conftest.run("gaussians8", run, *conftest.TINY, *conftest.FULL, *bare)
    assert out.count("no report.html: ") == 1
    assert (run / "results.json").exists() and "Traceback" not in out
    assert len(json.loads((run / "run.json").read_text())["sessions"]) == 2


def test_a_comparison_has_the_numbers_of_both(run, trained, tmp_path, capsys):
    results = json.loads((run / "results.json").read_text()) | {"jsd": 0.123456789, "extra<b>": 1}
    (run / "results.json").write_text(json.dumps(results))
    shutil.copytree(run, tmp_path / "young")
    (tmp_path / "young" / "results.json").unlink()
    out = tmp_path / "out.html"
    compare.main(["", str(run), str(trained), str(tmp_path / "young"), "--html", str(out)])
    assert "0.12346" in capsys.readouterr().out
    page, text = Page(out), out.read_text()
    other = json.loads((trained / "results.json").read_text())
    at = page.texts.index("jsd")
    cells = [t for t in page.texts[at + 1 :] if t][:3]
    assert cells[0] == "0.12346" and float(cells[1]) == pytest.approx(other["jsd"], rel=1e-4) and cells[2] == "–"
    assert f'title="{results["jsd"]}"' in text and f'title="{other["jsd"]}"' in text
    assert "extra<b>" in page.text and "extra<b>" not in text
    assert "results.json is absent" in page.text
    assert text.count("var(--series-2)") > 5, "a curve of each run"
    assert page.tags.count("img") == 4 * 3
    assert all(load.startswith(("#", "data:image/")) for load in page.loads)
    with pytest.raises(UserError, match="is a folder"):
        compare.main(["", str(run), "--html", str(tmp_path)])
    assert comparison._short(["gs://b/runs/a", "gs://b/runs/b/"]) == ["a", "b"]


def test_values_are_shown_as_people_write_them():
    assert [pages.value(v) for v in (True, None, -0.25, [1], [1, 2], "x" * 400)] == [
        *("True", "–", "−0.25", "(1,)", "(1, 2)"),
        "x" * 300 + "…",
    ]
    assert [pages.duration(s) for s in (5.61, 184, 3725)] == ["5.6 s", "3 min 04 s", "1 h 02 min"]
    assert pages.count(1_234_567) == "1,234,567"


@pytest.mark.soak
def test_a_report_in_a_bucket(run, bucket):
    code = """if True:
        import sys
        from pathlib import Path
        from sintrovae_jax import files
        from sintrovae_jax.reports import report
        run, place = Path(sys.argv[1]), files.place("gs://bucket/run")
        for name in ("config.json", "metrics.csv", "figures/samples.png", "figures/samples_0000030.png"):
            (place / name).write_bytes((run / name).read_bytes())
        print(report.write(place).read_text())
    """
    command = [sys.executable, "-c", code, str(run)]
    env = conftest.environment() | bucket
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "Losses" in done.stdout and 'alt="samples at step 30"' in done.stdout
    assert "checkpoints is absent" in done.stdout
