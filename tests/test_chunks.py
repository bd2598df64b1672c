"""Computing in chunks over several devices: any number of rows, wherever they lie, compiled once."""

import subprocess
import sys

from conftest import ROOT, environment

SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from sintrovae_jax import parallel

assert jax.local_device_count() == 4
compiled = []


@jax.jit
def double(variables, x, extra):
    compiled.append(x.shape)
    return {"y": variables * x, "extra": None if extra is None else extra + 1}


variables = parallel.on_local_devices(np.float32(2))
for n in (0, 1, 3, 4, 10, 12, 13, 24, 100):
    x = np.arange(3 * n, dtype=np.float32).reshape(n, 3)
    for where in (x, jnp.asarray(x), jax.device_put(x, jax.devices()[2])):
        got = parallel.in_chunks(lambda x, extra: double(variables, x, extra), 10, where, None)
        np.testing.assert_array_equal(got["y"], 2 * x)
        got = parallel.in_chunks(lambda x, extra: double(variables, x, extra), 10, where, np.arange(n))
        np.testing.assert_array_equal(got["extra"], np.arange(n) + 1)
assert {shape[0] for shape in compiled if shape[0] > 12} == set(), compiled
assert parallel.chunk(10) == 12
_, whole = jax.jit(lambda x: (0, parallel.in_chunks(lambda x: double(variables, x, None), 10, x)))(jnp.ones((30, 2)))
np.testing.assert_array_equal(whole["y"], 2 * np.ones((30, 2)))
spread = parallel.in_chunks(lambda x: double(variables, x, None), 12, np.ones((12, 2), np.float32))["y"]
assert len(spread.sharding.device_set) == 4
"""


def test_any_number_of_rows_on_several_devices():
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, env=environment(4), cwd=ROOT)
