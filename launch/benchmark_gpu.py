"""Times training steps on one GPU, each case in a process of its own, within a limit. See benchmark_gpu.sh.

This process imports no jax: it starts the cases in the order of their importance, ends those that take too long, and
rewrites results.json and results.md after each, so that an interrupted run keeps its results. While one case is timed
the next one imports, traces and waits for its turn, which is most of its work on the CPU.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 10  # of one sample: one dispatch of 10 substeps, or 10 of 1 without waiting in between
# By default XLA does not record convolutions and loops in CUDA graphs.
GRAPHS = "--xla_gpu_enable_command_buffer=+CONVOLUTION,+WHILE"
# Without tensor cores, from NVIDIA's data sheets, SXM: the peak of float32 where TF32 is off, in FLOP/s.
FLOAT32 = {"a100": 19.5e12, "h100": 67e12, "h200": 67e12}
SPARE = 4  # seconds of the limit that are reserved for ending


@dataclasses.dataclass(frozen=True)
class Case:
    """One line of the results. official: how to run the official step; empty: this package's step."""

    name: str
    recipe: str = "cifar10"
    batch: int = 32
    dtype: str = "float32"
    substeps: int = 10
    graphs: bool = False  # convolutions and loops in CUDA graphs
    up_by_parts: bool = False  # the decoder's up-convolutions as on a CPU, with 4 products a pixel and not 9
    apart: bool = False  # reconstructions and samples in separate passes
    gamma_r: float = 0.0
    official: str = ""  # eager, channels_last, autocast (channels last too), tuned (and cuDNN's own search)
    seconds: float = 90  # the time limit


def cases() -> list[Case]:
    """All cases, the most informative ones first: on a slow machine the last ones are not reached."""

    def official(name, how="eager", **kwargs):
        dtype = "bfloat16" if how in ("autocast", "tuned") else "float32"
        return Case(f"{name}-official-{how}", official=how, substeps=1, seconds=45, dtype=dtype, **kwargs)

    celeba = {"recipe": "celebahq", "batch": 8}  # larger programs, which take longer to compile
    long = {"seconds": 150, **celeba}
    return [
        Case("cifar10"),
        official("cifar10"),
        Case("cifar10-bfloat16", dtype="bfloat16"),
        Case("cifar10-graphs", graphs=True),
        official("cifar10", "channels_last"),
        official("cifar10", "autocast"),
        Case("celebahq", substeps=1, **long),
        official("celebahq", **celeba),
        Case("celebahq-bfloat16", substeps=1, dtype="bfloat16", **long),
        official("celebahq", "tuned", **celeba),
        Case("cifar10-apart", apart=True),
        Case("cifar10-up-by-parts", up_by_parts=True),
        Case("cifar10-substeps1", substeps=1),
        Case("cifar10-256", batch=256),
        official("cifar10-256", batch=256),
        Case("cifar10-256-bfloat16", batch=256, dtype="bfloat16"),
        official("cifar10-256", "tuned", batch=256),
        Case("celebahq-up-by-parts", substeps=1, up_by_parts=True, **long),
        Case("celebahq-apart", substeps=1, apart=True, **long),
        Case("cifar10-gamma_r", gamma_r=1e-8),
    ]


# --- a case, in its own process ---


def recipe(case: Case, tiny: bool):
    """The case's config."""
    from sintrovae_jax import config as configs

    config = configs.read_recipe(str(ROOT / "configs" / f"{case.recipe}.py"))
    config.train.batch_size, config.train.dtype, config.train.substeps = case.batch, case.dtype, case.substeps
    config.objective.gamma_r = case.gamma_r
    if tiny:
        config.data.image_size, config.model.channels, config.model.z_dim = 8, (4,), 4
        config.train.batch_size = 2
    return config


def time_ours(case: Case, tiny: bool, turn: Callable) -> dict:
    """The metrics of this package's step."""
    import jax

    from sintrovae_jax import parallel
    from sintrovae_jax.tools import bench

    if case.up_by_parts:
        convolve_up_by_parts()
    config = recipe(case, tiny)
    prepared = bench.prepare(config, apart if case.apart else lambda networks: networks)
    tf32 = case.dtype == "float32" and tensor_float()
    turn()
    began = time.perf_counter()
    compiled = parallel.compiled(prepared.lowered)
    compile_seconds = time.perf_counter() - began
    cost = bench.cost(compiled, prepared.function, prepared.arguments)
    seconds = bench.times(compiled, prepared.arguments, *((3, 1, 5) if tiny else (20, STEPS // case.substeps, 6)))
    steps = case.substeps if tiny else STEPS
    device = jax.devices()[0].device_kind
    metrics = speed([second / steps for second in seconds], config.train.batch_size)
    metrics |= {"compile_seconds": compile_seconds, "device": device} | cost | bench.memory(compiled)
    return metrics | roofline(metrics, device, case.dtype, tf32)


def speed(seconds: list[float], batch: int) -> dict:
    """The metrics that are reported, from the seconds per step of each sample."""
    median = statistics.median(seconds)
    return {
        "steps_per_second": 1 / median,
        "examples_per_second": batch / median,
        "milliseconds": {"median": 1e3 * median, "min": 1e3 * min(seconds), "max": 1e3 * max(seconds)},
        "samples": len(seconds),
    }


def roofline(figures: dict, device: str, dtype: str, tf32: bool) -> dict:
    """The share of what the GPU's peaks allow; empty for a GPU whose peaks are not known."""
    from sintrovae_jax.tools.plan import CHIPS

    name = next((name for name, chip in CHIPS.items() if chip.gpu and name in device.lower()), None)
    if name is None:
        return {}
    chip = CHIPS[name]
    peak = chip.flops if dtype == "bfloat16" else chip.flops / 2 if tf32 else FLOAT32[name]
    compute, memory = figures["flops_per_step"] / peak, figures["bytes_per_step"] / chip.bandwidth
    return {
        "peak_flops": peak,
        "roofline_milliseconds": 1e3 * max(compute, memory),
        "bound": "compute" if compute >= memory else "memory",
        "share": 1e3 * max(compute, memory) / figures["milliseconds"]["median"],
        "share_of_peak_flops": 1e3 * compute / figures["milliseconds"]["median"],
    }


def tensor_float() -> bool:
    """Whether float32 convolutions are TF32's: with 10 bits of mantissa they are off by 1e-4, by 1e-6 with 23."""
    import jax
    import numpy as np

    rng = np.random.default_rng(0)
    x, kernel = rng.random((64, 8, 8, 32), np.float32), rng.random((3, 3, 32, 64), np.float32)
    layout = ("NHWC", "HWIO", "NHWC")
    out = jax.jit(lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout))
    corner = np.asarray(out(x, kernel))[:, 0, 0]
    exact = x[:, :3, :3].reshape(64, -1).astype(np.float64) @ kernel.reshape(-1, 64)
    return bool(np.abs(corner / exact - 1).max() > 1e-5)


def convolve_up_by_parts() -> None:
    """Replaces the decoder's up-convolutions with those that run on a CPU."""
    from sintrovae_jax.models import conv, convolution

    conv.convolve_up = lambda x, kernel, *args, **kwargs: convolution._up_by_parts(x, kernel)


class Apart:
    """A network that processes the groups of a batch in separate passes, where the step asks for a single pass."""

    def __init__(self, network):
        self.network = network

    def __getattr__(self, name):
        return getattr(self.network, name)

    def apply(self, variables, x, *args, groups: int = 1, **kwargs):
        import jax
        import jax.numpy as jnp

        if groups == 1:
            return self.network.apply(variables, x, *args, **kwargs)
        parts = [self.network.apply(variables, part, *args, **kwargs) for part in jnp.split(x, groups)]
        outputs, stats = zip(*parts, strict=True)
        together = jax.tree.map(lambda *each: jnp.concatenate(each), *outputs)
        return together, jax.tree.map(lambda *each: sum(each) / groups, *stats)


class Unavailable(Exception):
    """This case cannot be run here; the message says why."""


def apart(networks):
    """Networks that process groups in separate passes. Raises `Unavailable` if they do not support groups."""
    import inspect

    if "groups" not in inspect.signature(type(networks.decoder).__call__).parameters:
        raise Unavailable("the networks have no passes over pairs: they run apart")
    return networks._replace(encoder=Apart(networks.encoder), decoder=Apart(networks.decoder))


def time_official(case: Case, tiny: bool, turn: Callable, folder: str) -> dict:
    """The metrics of the official step."""
    import benchmark_official as official  # beside this file

    config = recipe(case, tiny)
    step = official.prepare(folder, config, case.official)
    turn()
    step.run(3)
    seconds, began = [], time.perf_counter()
    steps = 1 if tiny else STEPS
    while len(seconds) < 2 or (len(seconds) < 20 and time.perf_counter() - began < (1 if tiny else 5)):
        seconds.append(step.run(steps) / steps)
    return speed(seconds, config.train.batch_size) | official.about(step)


def look() -> dict:
    """The probe: describes the machine, and checks that a tiny loop with a convolution runs with the given flags."""
    import flax
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sintrovae_jax.tools import bench

    del bench  # raises if it cannot be imported

    def body(x, _):
        kernel = jnp.ones((3, 3, 8, 8))
        return 0.1 * jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ), None

    np.asarray(jax.jit(lambda x: jax.lax.scan(body, x, None, 3)[0])(jnp.ones((4, 16, 16, 8))))
    device = jax.devices()[0]
    return {
        "backend": jax.default_backend(),
        "device": device.device_kind,
        "devices": jax.device_count(),
        "platform": device.client.platform_version,
        "tf32": tensor_float(),
        "versions": {"python": sys.version.split()[0], "jax": jax.__version__, "flax": flax.__version__},
    }


def child(name: str, result: Path, tiny: bool, official: str) -> None:
    """Runs a case and writes its metrics, or the reason why there are none."""

    def turn() -> None:
        if sys.stdin.readline() != "go\n":
            sys.exit("not wanted any more")

    try:
        if name == "probe":
            metrics = look()
        else:
            case = next(case for case in cases() if case.name == name)
            metrics = time_official(case, tiny, turn, official) if case.official else time_ours(case, tiny, turn)
        out = {"status": "done"} | metrics
    except Unavailable as error:
        out = {"status": "unavailable", "why": str(error)}
    partial = result.with_suffix(".partial")
    partial.write_text(json.dumps(out))
    partial.rename(result)


# --- all of them ---


class Running:
    """A case's process, and its log."""

    def __init__(self, name: str, options, graphs: bool = False, cache: str = ""):
        self.name, self.log = name, options.out / "logs" / f"{name}.log"
        self.result = options.out / "logs" / f"{name}.json"
        self.result.unlink(missing_ok=True)
        line = [sys.executable, __file__, "--case", name, "--result", str(self.result), "--official", options.official]
        line += ["--tiny"] * options.tiny
        with self.log.open("w") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT, "text": True}
            environment = surroundings(options.tiny, graphs, cache)
            self.process = subprocess.Popen(line, env=environment, start_new_session=True, cwd=ROOT, **pipes)

    def finish(self, seconds: float) -> dict:
        """Lets the process take its turn, for at most this many seconds. Returns its result."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            return {"status": "timeout", "why": f"not done in {seconds:.0f} s"}
        self.end()  # and any process that it started
        if self.result.exists():
            return json.loads(self.result.read_text())
        return {"status": "failed", "why": last_line(self.log.read_text(errors="replace"), self.process.returncode)}

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the driver may delay its end
            self.process.wait(5)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


def surroundings(tiny: bool, graphs: bool, cache: str) -> dict:
    """The environment of a case.

    It shows one GPU. Memory is not preallocated, as two processes share the GPU; XLA's autotuning results are kept for
    the next case.
    """
    out = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
    out["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    out["CUDA_VISIBLE_DEVICES"] = out.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if cache:
        out.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
        out.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    if graphs:
        out["XLA_FLAGS"] = f"{out.get('XLA_FLAGS', '')} {GRAPHS}".strip()
    if tiny:
        out |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    return out


def least(case: Case) -> float:
    """The seconds that must be left for a case to be started."""
    return 6 if case.official else 12


def last_line(log: str, code: int) -> str:
    """The last error message of a failed process, as one short line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return ((errors or lines or [""])[-1][:300] or "no word") + f" (exit code {code})"


class Benchmark:
    """The benchmark run: the results so far, and the time left."""

    def __init__(self, options):
        self.options, self.stop, self.running = options, time.monotonic() + options.limit - SPARE, []
        self.began = time.time()
        self.found = {"limit": options.limit, "tiny": options.tiny, "machine": {}, "notes": [], "cases": []}

    def left(self) -> float:
        return self.stop - time.monotonic()

    def start(self, name: str, **kwargs) -> Running:
        self.running.append(Running(name, self.options, **kwargs))
        return self.running[-1]

    def probe(self) -> bool:
        """Probes the machine. Returns whether XLA accepts the flags for CUDA graphs."""
        machine = self.start("probe", graphs=True).finish(min(90, self.left()))
        taken = machine["status"] == "done"
        if not taken:
            self.note(f"XLA does not take {GRAPHS}: {machine['why']}")
            machine = self.start("probe").finish(min(90, self.left()))
        if machine["status"] != "done":
            refuse(f"{sys.executable} cannot run jax and this package: {machine['why']}")
        if machine["backend"] != "gpu" and not self.options.tiny:
            refuse(f"jax finds no GPU but {machine['device']}; --tiny rehearses on the CPU")
        self.found["machine"] = machine
        return taken

    def note(self, text: str) -> None:
        self.found["notes"].append(text)

    def run(self, wanted: list[Case], cache: str) -> None:
        """Runs all cases. The next one is started when the current one gets its turn, and waits for its own."""

        def start(case: Case) -> Running | None:
            return self.start(case.name, graphs=case.graphs, cache=cache) if self.left() > least(case) else None

        if not self.options.official:
            wanted = [case for case in wanted if not case.official]
            self.note("the official code is not timed: that needs --official")
        ahead = start(wanted[0]) if wanted and not wanted[0].graphs else None
        if not self.probe():
            wanted = self.without(wanted, lambda case: case.graphs, "XLA does not take the flag")
        for case, following in zip(wanted, [*wanted[1:], None], strict=False):  # `wanted` may be empty
            current = ahead or start(case)
            ahead = following and start(following)
            if current is None or self.left() < least(case):
                self.add(case, {"status": "not run", "why": "the time was over"})
            else:
                seconds = math.inf if self.options.tiny else case.seconds
                self.add(case, current.finish(min(seconds, self.left())))

    def without(self, wanted: list[Case], left_out: Callable, why: str) -> list[Case]:
        for case in filter(left_out, wanted):
            self.add(case, {"status": "unavailable", "why": why})
        return [case for case in wanted if not left_out(case)]

    def add(self, case: Case, metrics: dict) -> None:
        if "torch" in metrics:
            self.found["machine"]["versions"]["torch"] = metrics["torch"]
        self.found["cases"].append(dataclasses.asdict(case) | metrics)
        self.write()
        summary = f"{metrics['steps_per_second']:.4g} steps/s" if metrics["status"] == "done" else metrics["why"]
        print(f"{time.time() - self.began:5.0f} s  {case.name}: {summary}", flush=True)

    def write(self) -> None:
        self.found["seconds"] = time.time() - self.began
        for name, text in (
            ("results.json", json.dumps(self.found, indent=1) + "\n"),
            ("results.md", report(self.found)),
        ):
            partial = self.options.out / f"{name}.partial"
            partial.write_text(text)
            partial.rename(self.options.out / name)

    def end(self) -> None:
        for case in self.running:
            if case.process.poll() is None:
                case.end()


# --- the table ---

COLUMNS = (
    "case",
    "steps/s",
    "ms/step (min–max)",
    "examples/s",
    "× official",
    "roofline",
    "TFLOP",
    "GB moved",
    "GB",
    "compile s",
)


def report(found: dict) -> str:
    """The results as Markdown that is also readable as text."""
    done = [case for case in found["cases"] if case["status"] == "done"]
    rows = [COLUMNS, *(row(case, baseline(case, done)) for case in done)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, each, widths)) + " |" for each in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    missing = [
        f"- `{case['name']}`: {case['status']}, {case['why']}" for case in found["cases"] if case["status"] != "done"
    ]
    notes = [f"- {note}" for note in (*found["notes"], *explanations(found))]
    return "\n".join([heading(found), "", *lines, "", *missing, *notes, ""])


def heading(found: dict) -> str:
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    tiny = "A rehearsal with tiny networks: no meaningful metrics. " if found["tiny"] else ""
    return f"{tiny}{machine.get('device', 'unknown device')}; {versions}; {found.get('seconds', 0):.0f} s"


def baseline(case: dict, done: list[dict]) -> float | None:
    """Steps a second of the official eager step on the same recipe and batch."""
    same = (each for each in done if each["official"] == "eager" and each["recipe"] == case["recipe"])
    return next((each["steps_per_second"] for each in same if each["batch"] == case["batch"]), None)


def row(case: dict, official: float | None) -> tuple[str, ...]:
    times = case["milliseconds"]
    share = f"{100 * case['share']:.0f} %, {case['bound']}" if "share" in case else "-"
    planned, seen = number(case.get("peak_bytes_planned"), 1e9), number(case.get("peak_bytes_seen"), 1e9)
    return (
        case["name"],
        f"{case['steps_per_second']:.4g}",
        f"{times['median']:.4g} ({times['min']:.4g}–{times['max']:.4g})",
        f"{case['examples_per_second']:.4g}",
        "-" if official is None else f"{case['steps_per_second'] / official:.2f}",
        share,
        number(case.get("flops_per_step"), 1e12),
        number(case.get("bytes_per_step"), 1e9),
        f"{planned} / {seen}",
        number(case.get("compile_seconds")),
    )


def number(value: float | None, unit: float = 1) -> str:
    return "-" if value is None or math.isnan(value) else f"{value / unit:.3g}"


def explanations(found: dict) -> list[str]:
    """Notes on how to read the table."""
    tf32 = found["machine"].get("tf32")
    return [
        "cifar10 is batch 32 in 10 substeps a dispatch, celebahq batch 8 in 1, both float32, unless the name says"
        " otherwise; graphs: convolutions and loops in CUDA graphs too.",
        f"A sample is {STEPS} steps, the time the median of samples; data stays on the GPU.",
        f"float32 of jax is computed as {'TF32' if tf32 else 'float32'}, and the roofline's peak is that type's.",
        "Roofline: the larger of FLOPs at the peak and bytes at the memory's bandwidth, divided by the time. FLOPs are"
        " those of convolutions and products, bytes those of every kernel's operands.",
        "GB: planned by the compiler / seen at the peak, which for jax includes the memory of autotuning.",
        "Compile: later cases reuse the autotuning results of earlier ones.",
        "The official step has γ_r = 1e-8, so two decodings more, which `cifar10-gamma_r` has too.",
    ]


# --- the command line ---


def refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        refuse(message)


def parse(argv: list[str]):
    parser = Parser(prog="benchmark_gpu.sh", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("benchmark_gpu"))
    parser.add_argument("--limit", type=float, default=420)
    parser.add_argument("--official", default="")
    parser.add_argument("--only", default="")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.out = options.out.expanduser().absolute()
    if not 30 <= options.limit < math.inf:
        refuse(f"--limit {options.limit:g}: give 30 seconds or more")
    if options.official:
        options.official = str(Path(options.official).expanduser().absolute())
        if not (Path(options.official) / "soft_intro_vae" / "train_soft_intro_vae.py").is_file():
            refuse(f"--official {options.official}: soft_intro_vae/train_soft_intro_vae.py is not in it")
    return options


def chosen(pattern: str) -> list[Case]:
    try:
        out = [case for case in cases() if re.search(pattern, case.name)]
    except re.error as error:
        refuse(f"--only {pattern}: {error}")
    return out or refuse(f"--only {pattern}: no case has such a name; --list names them")


def stopped(signum, frame) -> None:
    raise SystemExit(128 + signum)


def main(argv: list[str]) -> None:
    options = parse(argv)
    if options.case:
        return child(options.case, options.result, options.tiny, options.official)
    wanted = chosen(options.only)
    if options.list:
        return print(*(case.name for case in wanted), sep="\n")
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, stopped)
    try:
        (options.out / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse(f"--out {options.out}: {error.strerror}")
    benchmark = Benchmark(options)
    try:
        with tempfile.TemporaryDirectory() as cache:
            benchmark.run(wanted, cache)
    finally:
        benchmark.end()
        if benchmark.found["machine"]:
            benchmark.write()
            print((options.out / "results.md").read_text())


if __name__ == "__main__":
    main(sys.argv[1:])
