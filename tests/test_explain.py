"""What moves bytes: programs whose instructions are counted by hand, one written down and one compiled."""

import importlib.util
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from conftest import ROOT, environment
from test_plan import small

from sintrovae_jax.tools import explain, hlo, plan

PROGRAM = """
HloModule step, is_scheduled=true

FileNames
1 "/somewhere/sintrovae_jax/models/convolution.py"
2 "/elsewhere/flax/linen/normalization.py"
3 "/somewhere/sintrovae_jax/models/conv.py"

FunctionNames
1 "pool"
2 "_normalize"
3 "Block.__call__"

FileLocations
1 {file_name_id=3 function_name_id=3 line=46 end_line=46 column=4 end_column=9}
2 {file_name_id=1 function_name_id=1 line=14 end_line=14 column=4 end_column=9}
3 {file_name_id=2 function_name_id=2 line=389 end_line=389 column=4 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=2}

%fused.1 (p0: bf16[16,32,32,64], p1: bf16[3,3,64,64]) -> bf16[16,32,32,64] {
  %p0 = @map parameter(0)
  %p1 = @fast parameter(1)
  ROOT %c = @map convolution(%p0, %p1), window={size=3x3}, dim_labels=b01f_01io->b01f
}

%fused.2 (p2: f32[10,64], p3: s32[]) -> f32[1,64] {
  %p2 = f32[10,64]{1,0:T(8,128)} parameter(0)
  %p3 = s32[]{:T(128)} parameter(1)
  ROOT %s = f32[1,64]{1,0:T(1,128)} dynamic-slice(%p2, %p3, %p3), dynamic_slice_sizes={1,64}
}

%body (state: (bf16[16,32,32,64], bf16[3,3,64,64])) -> (bf16[16,32,32,64], bf16[3,3,64,64]) {
  %state = (@map, @kernel) parameter(0)
  %x = @map get-tuple-element(%state), index=0
  %k = @kernel get-tuple-element(%state), index=1
  %copy-start = (@fast, @kernel, u32[]{:S(2)}) copy-start(%k)
  %copy-done = @fast copy-done(%copy-start)
  %conv = @map fusion(%x, %copy-done), kind=kOutput, calls=%fused.1, metadata={op_name="Block/conv1" stack_frame_id=1}
  %norm = @map multiply(%conv, /*index=1*/%conv), metadata={op_name="Block/norm1/mul" stack_frame_id=3}
  %pool = bf16[16,16,16,64]{3,0,2,1:T(8,128)(2,1)} reduce-window(%norm), metadata={op_name="add" stack_frame_id=2}
  %turned = bf16[16,32,32,64]{0,3,2,1:T(8,128)(2,1)} copy(%norm)
  ROOT %out = (bf16[16,32,32,64], bf16[3,3,64,64]) tuple(%norm, %k)
}

ENTRY %main (a: bf16[16,32,32,64], b: bf16[3,3,64,64], c: f32[10,64], d: s32[]) -> f32[1,64] {
  %a = @map parameter(0)
  %b = @kernel parameter(1)
  %c.1 = f32[10,64]{1,0:T(8,128)} parameter(2)
  %d = s32[]{:T(128)} parameter(3)
  %both = (@map, @kernel) tuple(%a, %b)
  %while = (@map, @kernel) while(%both), condition=%cond, body=%body
  %row = f32[1,64]{1,0:T(1,128)} fusion(%c.1, %d), kind=kLoop, calls=%fused.2
  ROOT %sum = f32[1,64]{1,0:T(1,128)} all-reduce(%row), channel_id=1, to_apply=%add
}
"""
PROGRAM = PROGRAM.replace("@map", "bf16[16,32,32,64]{3,0,2,1:T(8,128)(2,1)}")
PROGRAM = PROGRAM.replace("@kernel", "bf16[3,3,64,64]{3,2,1,0:T(8,128)(2,1)}")
PROGRAM = PROGRAM.replace("@fast", "bf16[3,3,64,64]{3,2,1,0:T(8,128)(2,1)S(1)}")
MAP, KERNEL = 2 * 16 * 32 * 32 * 64, 2 * 3 * 3 * 64 * 64


@pytest.mark.parametrize(
    ("text", "plain", "padded"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 4096, 4096),
        ("f32[8,3]{1,0:T(8,128)}", 96, 4096),
        ("f32[8,3]{0,1:T(8,128)}", 96, 4096),
        ("bf16[16,256,256,64]{3,0,2,1:T(8,128)(2,1)}", 2 * 2**26, 2 * 2**27),
        ("bf16[2,5,129,64]{1,2,3,0:T(2,128)(2,1)}", 2 * 2 * 5 * 129 * 64, 2 * 2 * 64 * 130 * 128),
        ("f32[64]{0:T(1,128)}", 256, 512),
        ("f32[64]{0}", 256, 256),
        ("pred[]", 1, 1),
    ],
)
def test_arrays_are_padded_to_whole_tiles(text, plain, padded):
    assert hlo.sizes(text) == [hlo.Size(plain, padded, padded)]
    if "T" in text:
        assert hlo.sizes(text.replace("}", "S(1)}")) == [hlo.Size(0, 0, padded)], "in a memory of the chip's own"


def test_a_program_counted_by_hand():
    found = {each.name: each for each in explain.moved(PROGRAM)}
    plain = {name: each.size.plain for name, each in found.items()}
    assert plain == {
        "copy-start": KERNEL,  # to the chip's own memory, where the convolution then finds it
        "conv": 2 * MAP,
        "norm": 3 * MAP,  # it names one operand twice
        "pool": MAP + MAP // 4,
        "turned": 2 * MAP,
        "row": 2 * 256 + 4,  # a row of ten
        "sum": 2 * 256,
    }
    assert found["conv"].size == hlo.Size(2 * MAP, 4 * MAP, 4 * MAP + 2 * KERNEL)
    assert found["turned"].size.padded == 2 * MAP + 8 * MAP, "sixteen images, innermost, are padded to 128"
    assert {name: each.kind for name, each in found.items()} == {
        "copy-start": "copies and layouts",
        "conv": "convolution",
        "norm": "normalisation",
        "pool": "resampling",
        "turned": "copies and layouts",
        "row": "copies and layouts",
        "sum": "collective",
    }
    assert found["norm"].source == "models/conv.py:46", "the line of ours that called flax"
    assert found["pool"].source == "models/convolution.py:14"
    assert next(iter(found)) == "turned", "the heaviest first"


def test_a_compiled_loop_counts_its_body_once():
    steps, rows, width = 10, 64, 128

    def loop(xs, w):
        return jax.lax.scan(lambda c, x: (jnp.tanh(c @ w) + x, ()), jnp.zeros((rows, width)), xs)[0]

    compiled = jax.jit(loop).lower(jnp.zeros((steps, rows, width)), jnp.zeros((width, width))).compile()
    everything = explain.moved(compiled.as_text())
    of_map, of_kernel = 4 * rows * width, 4 * width * width
    products = [each for each in everything if each.kind == "convolution"]
    assert [each.size.plain for each in products] == [2 * of_map + of_kernel]
    total = sum((each.size for each in everything), hlo.Size())
    # The product; the sum, which reads the product and a slice of xs; and the zeros that the loop begins with.
    assert total.plain == pytest.approx(2 * of_map + of_kernel + 3 * of_map + of_map, rel=0.01)
    assert total.plain == total.padded == total.anywhere
    assert products[0].path.endswith("dot_general")


def test_the_sums_are_what_the_compiler_counts():
    (p,) = plan.plan(small(), "h100:1", explained=True)
    assert "moved: " in p.explanation
    assert "optimiser: 0" not in p.explanation
    assert "convolution: 0" not in p.explanation
    assert p.explanation in plan.report([p])
    counted = float(p.explanation.splitlines()[0].rpartition("(")[2].rstrip("%)")) / 100
    assert abs(counted) < 0.1


SLICE = """
from test_plan import small
from sintrovae_jax.tools import plan
(p,) = plan.plan(small(), "v5e:2x4", explained=True)
print(p.explanation)
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU's compiler, is not installed (extra `tpu`)"
)
def test_a_program_for_a_tpu():
    env = environment(PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    done = subprocess.run([sys.executable, "-c", SLICE], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert abs(float(first.rpartition("(")[2].rstrip("%)"))) < 10, first
    assert not any(line.endswith((" convolution: 0", " collective: 0")) for line in lines)
