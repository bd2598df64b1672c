"""Models as programs that need JAX alone, run in a process that has nothing of this package."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import here

import sintrovae_jax
from sintrovae_jax import config, dispatch
from sintrovae_jax.errors import UserError
from sintrovae_jax.models import Model
from sintrovae_jax.tools import export, stablehlo

CHECK = """
import sys
sys.modules["sintrovae_jax"] = sys.modules["flax"] = sys.modules["orbax"] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
import load_model as model

known = np.load(sys.argv[2])
for n in (1, 5):
    close = lambda got, name: np.testing.assert_allclose(got, known[name][:n], atol=1e-5)
    labels = [known["labels"][:n]] if model.MODEL["classes"] else []
    for got, name in zip(model.encode(known["x"][:n], *labels), ("mean", "logvar"), strict=True):
        close(got, name)
    close(model.decode(known["mean"][:n], *labels), "recon")
if labels:
    np.testing.assert_array_equal(model.sample(3, 5), model.sample(3, 5, [0, 1, 2, 3, 4]))
    for wrong in (None, [0, 1], [0, 1, 2, 3, 10], [-1, 0, 0, 0, 0], [[0, 1, 2, 3, 4]]):
        try:
            model.encode(known["x"], wrong)
        except ValueError as error:
            assert "whole numbers from 0 to 9" in str(error)
        else:
            raise AssertionError(wrong)
labels = [known["labels"]] if labels else []
np.testing.assert_allclose(model.sample(3, 5, *labels), known["samples"], atol=1e-5)
"""


def agrees(path, model, folder, labels=None):
    """Whether the programs in a folder give what the model does."""
    x = np.random.default_rng(0).random((5, *model.shape)).astype(np.float32)
    mean, logvar = model.encode(x, labels)
    known = {"x": x, "mean": mean, "logvar": logvar, "recon": model.decode(mean, labels=labels)}
    known |= {
        "samples": model.sample(3, 5, labels=labels),
        "labels": np.zeros(5, np.int32) if labels is None else labels,
    }
    np.savez(folder / "known.npz", **known)
    subprocess.run([sys.executable, "-c", CHECK, str(path), str(folder / "known.npz")], check=True, timeout=300)


@pytest.mark.parametrize("name", ["digits", pytest.param("digits_style", marks=pytest.mark.soak)])
def test_programs_need_jax_alone(name, tmp_path):
    out, code = here([f"pretrained:{name}", str(tmp_path / "out"), "--stablehlo"], export.main)
    assert code == 0, out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("encode.jax_export", "decode.jax_export", "decode_prior.jax_export", "model.json", "load_model.py")
    }
    agrees(tmp_path / "out", sintrovae_jax.load(f"pretrained:{name}"), tmp_path)
    with pytest.raises(UserError, match="exists already"):
        export.export_programs(f"pretrained:{name}", tmp_path / "out")


def test_programs_of_a_conditional_model_with_a_learnt_prior_take_labels(tmp_path):
    settings = config.read_recipe("configs/digits_conditional.py")
    settings.model.channels, settings.data.image_size, settings.model.prior = (4,), 8, "mixture"
    networks, _, create = dispatch.from_config(settings)
    model = Model(settings, 0, networks.encoder, networks.decoder, jax.jit(create)().variables)
    stablehlo.write(model, tmp_path / "out")
    agrees(tmp_path / "out", model, tmp_path, np.array([3, 0, 9, 3, 1], np.int32))
