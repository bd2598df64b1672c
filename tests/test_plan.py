"""Planning: what the compilers count of a small step, against counts by hand."""

import importlib.util
import json
import subprocess
import sys

import jax
import pytest
from conftest import ROOT, environment

from sintrovae_jax import config, dispatch
from sintrovae_jax.errors import UserError
from sintrovae_jax.tools import bench, plan

WIDTH, BATCH = 64, 512


def small():
    settings = config.read_recipe("configs/gaussians8.py")
    settings.model.channels = (WIDTH,) * 3
    settings.train.batch_size, settings.train.substeps, settings.train.steps = BATCH, 10, 1000
    return settings


def products(batch: int) -> float:
    """FLOPs of the matrix products of one step, network pass by network pass.

    In the encoder's update: 3 encodings and 4 decodings, gradients of the encodings' inputs and weights (2 each), and
    of the inputs of the 3 decodings that depend on the encoder. In the decoder's: 2 encodings and the gradients of
    their inputs; and the gradients of weights and inputs of 2 decodings (the decodings are the encoder update's).
    """
    encoder = 2 * batch * (2 * WIDTH + 2 * WIDTH**2 + WIDTH * 4)
    decoder = 2 * batch * (2 * WIDTH + 2 * WIDTH**2 + WIDTH * 2)
    return (3 + 2 * 3 + 2 + 2) * encoder + (4 + 3 + 2 * 2) * decoder


def test_flops_and_memory_of_a_step_for_gpus_are_those_counted_by_hand():
    (p,) = plan.plan(small(), "h100:4")
    assert p.estimate
    assert (p.chips, p.batch_size, p.steps, p.level) == (4, BATCH, 1000, None)
    assert p.flops == pytest.approx(products(BATCH // 4), rel=0.15), (
        "besides products there are activations, Adam, losses"
    )
    state = jax.eval_shape(dispatch.from_config(small())[2])
    batches = 10 * BATCH // 4 * (2 * 4 + 4)
    kept = batches + sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert kept <= p.arguments < kept + 4096, "and some scalars"
    assert p.seconds == pytest.approx(max(p.flops / 989e12, p.bytes / 3350e9))
    assert p.examples_per_second == pytest.approx(BATCH / p.seconds)
    assert p.hours == pytest.approx(1000 * p.seconds / 3600)
    assert p.fits


def test_it_counts_what_the_bench_counts():
    settings = small()
    (p,) = plan.plan(settings, "h100:1")
    assert p.flops == pytest.approx(bench.measure(settings, 1)["flops_per_step"], rel=1e-3)


@pytest.mark.soak
def test_every_level_of_a_recipe_that_grows():
    settings = config.read_recipe("configs/digits_style.py")
    settings.model.channels, settings.model.z_dim, settings.data.image_size = (4, 4), 4, 8
    settings.growth.steps, settings.growth.batch_sizes = (100, 200), (64, 64)
    settings.objective.name = "vae"  # whose step compiles sooner
    plans = plan.plan(settings, "a100:2")
    assert [p.level for p in plans] == [0, 1]
    assert sum(p.steps for p in plans) == settings.train.steps
    assert plans[0].flops < plans[1].flops
    (first,) = plan.plan(settings, "a100:2", level=0)
    assert first == plans[0]
    assert "all levels" in plan.report(plans)
    with pytest.raises(UserError, match=r"--level 2: this recipe has \[0, 1\]"):
        plan.plan(settings, "a100:2", level=2)


def test_what_does_not_fit_is_said():
    chip = plan.CHIPS["h100"]
    tiny = chip._replace(memory=1e5)
    try:
        plan.CHIPS["h100"] = tiny
        (p,) = plan.plan(small(), "h100:1")
    finally:
        plan.CHIPS["h100"] = chip
    assert not p.fits
    assert "GB of 0.0 GB" in p.why
    assert "no: " in plan.report([p])


PROGRAM = """
  %all-reduce.1 = (f32[64,64]{1,0}, f32[64]{0}) all-reduce(%a, %b), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  %all-reduce-start.2 = bf16[10]{0} all-reduce-start(%c), channel_id=2, to_apply=%add
  %all-reduce-done.2 = bf16[10]{0} all-reduce-done(%all-reduce-start.2)
  %ag = (f32[4]{0}, f32[8]{0}) all-gather-start(%d), channel_id=3
  %fusion = f32[8]{0} fusion(%all-reduce.1), kind=kLoop, calls=%all-reduce
"""


def test_collectives_are_counted_once_with_their_bytes():
    assert plan.collectives(PROGRAM) == {"all-reduce": (2, 4 * (64 * 64 + 64) + 2 * 10), "all-gather": (1, 4 * 8)}


@pytest.mark.parametrize(
    ("topology", "says"),
    [
        ("", "--mode plan needs --topology, as v5e:4x8 or h100:8, of v4"),
        ("v9:2x2", "not 'v9:2x2'"),
        ("h100", "not 'h100'"),
        ("h100:3", "train.batch_size: 512 does not divide by the 3 chips of h100:3"),
    ],
)
def test_what_cannot_be_planned_is_one_line(topology, says):
    with pytest.raises(UserError, match=says):
        plan.plan(small(), topology)


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU's compiler, is not installed (extra `tpu`)"
)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_compiler_it_is_one_line():
    done = command("--topology", "v5e:2x4")
    assert done.returncode == 2
    assert "error: planning for TPUs needs their compiler: install the extra `tpu`" in done.stderr


def command(*args):
    """The command line, in a process of its own: planning for TPUs settles the platform of the process."""
    line = [sys.executable, "-m", "sintrovae_jax.main", "--config", "configs/gaussians8.py", "--mode", "plan", *args]
    return subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


SLICE = """
import dataclasses, json
from test_plan import small
from sintrovae_jax.tools import plan
(p,) = plan.plan(small(), "v5e:2x4")
print(json.dumps(dataclasses.asdict(p)))
"""


@needs_compiler
def test_a_slice_of_eight_chips():
    env = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    done = subprocess.run([sys.executable, "-c", SLICE], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    p = json.loads(done.stdout.splitlines()[-1])
    assert p["chips"] == 8
    assert not p["estimate"]
    assert p["flops"] == pytest.approx(products(BATCH // 8), rel=0.3), "the TPU pads its products"
    state = jax.eval_shape(dispatch.from_config(small())[2])
    parameters = [sum(leaf.size for leaf in jax.tree.leaves(n.params)) for n in (state.encoder, state.decoder)]
    # One all-reduce for each network's gradients, and one for the terms of the whole dispatch.
    assert p["collectives"]["all-reduce"][0] == 3
    assert p["collectives"]["all-reduce"][1] == pytest.approx(4 * sum(parameters), rel=0.05)
    assert p["fits"]
    assert 4 * 3 * sum(parameters) < p["arguments"] < 8 * 4 * 3 * sum(parameters), "Adam's state too, padded"


@needs_compiler
def test_slices_that_do_not_exist_are_one_line():
    done = command("--topology", "v5e:3x5")
    assert done.returncode == 2
    assert "error: --topology v5e:3x5 does not exist" in done.stderr
