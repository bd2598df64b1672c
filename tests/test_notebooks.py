"""The Colab notebooks, top to bottom in a real kernel, on small settings; what they computed is looked at."""

import os

import nbclient
import nbformat
import pytest
from conftest import ROOT, environment

FOLDER = ROOT / "launch" / "colab"
TINY = [
    "--config.train.substeps=5",
    "--config.log.every=5",
    "--config.objective.num_vae=5",
    "--config.log.report=False",
]
# For each notebook: what follows its cell of parameters, what must hold in the end, and how many pictures there are.
CASES = {
    "restore": (
        "",
        """
        assert (model.step, samples.shape) == (2000, (100, 16, 16, 1))
        assert np.square(np.asarray(reconstructions) - x).sum((1, 2, 3)).mean() < 6
        assert np.allclose(between[:, 0], reconstructions[:-1], atol=1e-4)
        assert likelihoods["digits"] > max(likelihoods["upside down"], likelihoods["inverted"])
        assert mixed.shape == (36, 16, 16, 1)
        assert asked.shape == (100, 16, 16, 1)
        assert np.allclose(asked[70:80], conditional.decode(z, role="prior", labels=[7] * 10), atol=1e-5)
        """,
        5,
    ),
    "densities": (
        f"""
        steps, every = 40, 20
        flags = {[*TINY, "--config.model.channels=(8,)", "--config.eval.num_samples=500"]}
        flags += ["--config.eval.batch_size=16384", "--config.eval.every=0"]
        """,
        """
        assert (results["step"], model.step) == (40, 40)
        assert len(rows) == 7 and all(np.isfinite(float(row["kl_gap"])) for row in rows)
        """,
        4,
    ),
    "digits": (
        f"""
        steps, every, samples = 20, 10, 100
        flags = {[*TINY, "--config.data.image_size=8", "--config.model.family=mlp", "--config.train.batch_size=16"]}
        flags += ["--config.eval.evaluators=()", "--config.checkpoint.best=", "--config.eval.standing_batches=2"]
        flags += ["--config.eval.likelihood.num_scored=20"]
        flags += ["--config.eval.ood.bootstrap=50"]
        """,
        """
        assert results["step"] == model.step == 20
        assert results["frechet_classifier_samples"] == 100
        assert 0 <= results["ood_auroc_elbo"] <= 1
        assert np.asarray(model.reconstruct(x[likely])).shape == (10, 8, 8, 1)
        """,
        4,
    ),
}


@pytest.mark.soak
@pytest.mark.parametrize("name", CASES)
def test_a_notebook_runs_and_computes_what_it_says(name, tmp_path, monkeypatch):
    settings, holds, pictures = CASES[name]
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (place,) = [i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ())]
    book.cells.insert(place + 1, nbformat.v4.new_code_cell(unindented(settings)))
    book.cells.append(nbformat.v4.new_code_cell("import numpy as np\n" + unindented(holds)))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.setattr(os, "environ", environment())
    if name == "densities":  # whose training is run twice
        (train,) = (cell for cell in book.cells if cell.source.startswith("train("))
        book.cells.insert(book.cells.index(train) + 1, nbformat.v4.new_code_cell(train.source))
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == pictures


def unindented(lines: str) -> str:
    return "\n".join(line.strip() for line in lines.splitlines())


def test_the_notebooks_are_kept_without_outputs_and_come_from_one_address():
    books = {path: nbformat.read(path, as_version=4) for path in FOLDER.glob("*.ipynb")}
    assert {path.stem for path in books} == CASES.keys()
    readme = (ROOT / "README.md").read_text()
    for path, book in books.items():
        nbformat.validate(book)
        assert not any(cell.get("outputs") for cell in book.cells)
        clone = "git clone --quiet --depth 1 https://github.com/OWNER/sintrovae_jax "
        assert any(clone in cell.source for cell in book.cells)
        badge = f"colab.research.google.com/github/OWNER/sintrovae_jax/blob/main/launch/colab/{path.name}"
        assert badge in book.cells[0].source
        assert badge in readme
