"""The benchmark of a GPU: one case whole on the CPU, the table, refused options, and what the roofline counts."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sintrovae_jax.tools import costs, explain

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "launch" / "benchmark_gpu.sh")


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_gpu", ROOT / "launch" / "benchmark_gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_gpu"] = module  # dataclasses look for it
    spec.loader.exec_module(module)
    return module


def run(*args: str, code: int = 0, **env: str) -> str:
    environment = os.environ | {"PYTHON": sys.executable} | env
    done = subprocess.run(["bash", SCRIPT, *args], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_case_is_timed_without_torch_and_tensorflow(tmp_path):
    for name in ("torch", "tensorflow"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    out = run(
        "--tiny", "--only", "^cifar10(-official-eager)?$", "--out", str(tmp_path / "out"), PYTHONPATH=str(tmp_path)
    )
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    (ours,) = found["cases"]
    assert ours["status"] == "done"
    for key in ("steps_per_second", "examples_per_second", "compile_seconds", "flops_per_step", "bytes_per_step"):
        assert ours[key] > 0, key
    assert ours["milliseconds"]["min"] <= ours["milliseconds"]["median"] <= ours["milliseconds"]["max"]
    assert found["notes"] == ["the official code is not timed: that needs --official"]
    assert (tmp_path / "out" / "results.md").read_text() in out


def test_the_table_has_what_was_found_and_what_was_not(benchmark):
    times = {"median": 2.0, "min": 1.9, "max": 2.5}
    case = {"name": "cifar10", "recipe": "cifar10", "batch": 32, "official": "", "status": "done"}
    case |= {"steps_per_second": 500.0, "examples_per_second": 16000.0, "milliseconds": times, "compile_seconds": 31.0}
    roofline = {"share": 0.41, "bound": "memory", "flops_per_step": 5e11, "bytes_per_step": 4e9}
    eager = case | {"name": "cifar10-official-eager", "official": "eager", "steps_per_second": 20.0}
    late = case | {"name": "celebahq", "status": "not run", "why": "the time was over"}
    machine = {"device": "A GPU", "versions": {"jax": "0"}, "tf32": True}
    cases = [case | roofline | {"peak_bytes_planned": 1e9}, eager, late]
    text = benchmark.report({"tiny": False, "machine": machine, "notes": ["A note"], "cases": cases, "seconds": 3})
    head, _, columns, ours, official, *rest = text.splitlines()[:1] + text.splitlines()[1:3] + text.splitlines()[4:]
    assert head == "A GPU; jax 0; 3 s"
    assert "roofline" in columns
    cells = [cell.strip() for cell in ours.split("|")[1:-1]]
    assert cells == ["cifar10", "500", "2 (1.9–2.5)", "1.6e+04", "25.00", "41 %, memory", "0.5", "4", "1 / -", "31"]
    assert official.split("|")[5].strip() == "1.00"
    assert {"- `celebahq`: not run, the time was over", "- A note"} <= set(rest)
    assert any("TF32" in line for line in rest)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--limit", "3"], "--limit 3: give 30 seconds or more"),
        (["--limit", "soon"], "invalid float value"),
        (["--official", "/nowhere"], "train_soft_intro_vae.py is not in it"),
        (["--only", "none"], "no case has such a name"),
        (["--only", "("], "--only ("),
        (["--out", "/dev/null/x"], "--out /dev/null/x"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, says):
    out = run(*options, code=2)
    assert out.startswith("error: "), out
    assert says in out
    assert len(out.splitlines()) == 1


def test_help_and_list(benchmark):
    assert "--official DIR" in run("--help")
    names = run("--list").split()
    assert names[0] == "cifar10"
    assert len(set(names)) == len(names) == len(benchmark.cases())


def test_a_network_taken_apart_gives_what_it_gives_together(benchmark):
    class Network:
        z_dim = 3

        def apply(self, variables, x, train):
            return variables * (x - x.mean(0)), {"mean": x.mean(0)}

    network = benchmark.Apart(Network())
    x = jnp.arange(8.0).reshape(4, 2)
    out, stats = network.apply(2.0, x, groups=2, train=True)
    np.testing.assert_allclose(out, np.tile([[-2.0], [2.0]], (2, 2)))
    np.testing.assert_allclose(stats["mean"], x.mean(0))
    assert network.z_dim == 3


def test_flops_and_bytes_are_the_compilers_where_it_knows_them():
    def function(x, kernel, matrix):
        def body(x, _):
            y = jax.lax.conv_general_dilated(
                x, kernel, (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            grad = jax.grad(lambda k: jax.lax.conv(x.swapaxes(1, 3), k, (1, 1), "SAME").sum())(
                kernel.transpose(3, 2, 0, 1)
            )
            return x + y.repeat(2, 1).repeat(2, 2), grad

        x, grads = jax.lax.scan(body, x, None, 3)
        dead = x.reshape(-1, 4) @ matrix
        del dead
        return x.reshape(x.shape[0], -1) @ jnp.ones((8 * 8 * 4, 16)), grads

    args = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4)), jnp.ones((4, 500))
    lowered = jax.jit(function).lower(*args)
    counted = costs.flops(costs.jaxpr_of(function, *args))
    assert counted == pytest.approx(lowered.cost_analysis()["flops"], rel=0.1)
    compiled = lowered.compile()
    moved = explain.total(explain.moved(compiled.as_text())).anywhere
    assert moved == pytest.approx(compiled.cost_analysis()["bytes accessed"], rel=0.3)


def test_bytes_of_a_gpus_program_count_library_calls_and_not_their_scratch():
    program = """HloModule step

%body (p: (f32[2,3], bf16[4])) -> (f32[2,3], bf16[4]) {
  %p = (f32[2,3]{1,0}, bf16[4]{0}) parameter(0)
  %x = f32[2,3]{1,0} get-tuple-element(%p), index=0
  %y = bf16[4]{0} get-tuple-element(%p), index=1
  %conv = (f32[2,3]{1,0}, u8[1000]{0}) custom-call(%x, %y), custom_call_target="__cudnn$convForward"
  %out = f32[2,3]{1,0} get-tuple-element(%conv), index=0
  ROOT %both = (f32[2,3]{1,0}, bf16[4]{0}) tuple(%out, %y)
}

ENTRY %main (a: f32[2,3], b: bf16[4]) -> (f32[2,3], bf16[4]) {
  %a = f32[2,3]{1,0} parameter(0)
  %b = bf16[4]{0} parameter(1)
  %start = (f32[2,3]{1,0}, bf16[4]{0}) tuple(%a, %b)
  ROOT %loop = (f32[2,3]{1,0}, bf16[4]{0}) while(%start), condition=%never, body=%body
}
"""
    assert explain.total(explain.moved(program)).anywhere == 24 + 8 + 24
