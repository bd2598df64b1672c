"""launch/sky.yaml: what SkyPilot would run, run here; and read by SkyPilot's own parser where it is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import QUICK, ROOT, TINY, environment, metrics
from conftest import run as train

from sintrovae_jax import cli, files, main, recipe_files

FILE = ROOT / "launch" / "sky.yaml"
TASK = yaml.safe_load(FILE.read_text())
SKY = os.environ.get("SKY_PYTHON", sys.executable)  # a Python that has SkyPilot, which has many dependencies

# Instead of Python: writes down its arguments, and ends as the next line of `codes` says, perhaps with a checkpoint.
RECORDER = """#!/usr/bin/env bash
here=$(dirname "$0")
if [[ $1 == - ]]; then
  cat >/dev/null
  ls "$2/checkpoints" 2>/dev/null | tail -n 1
  exit
fi
printf '%s\\n' "$*" >>"$here/calls"
read -r code step <"$here/codes"
sed -i 1d "$here/codes"
[[ -z $step ]] || mkdir -p "$here/run/checkpoints/$step"
exit "$code"
"""


def run(home: Path, python: str, **envs) -> tuple[int, str]:
    """What SkyPilot runs on a machine, with $HOME at a folder whose virtual environment has this Python."""
    place = home / "sintrovae-venv" / "bin"
    place.mkdir(parents=True, exist_ok=True)
    (place / "python").unlink(missing_ok=True)
    (place / "python").write_text(python)
    (place / "python").chmod(0o755)
    given = {name: value for name, value in TASK["envs"].items() if value is not None}
    env = environment() | given | {"HOME": str(home), "PAUSE": "0"} | envs
    line = ["bash", "-c", TASK["run"]]
    done = subprocess.run(line, env=env, cwd=ROOT, text=True, stdout=-1, stderr=subprocess.STDOUT, check=False)
    return done.returncode, done.stdout


def recorded(home: Path, codes: list[str], **envs) -> tuple[int, str, list[list[str]]]:
    place = home / "sintrovae-venv" / "bin"
    place.mkdir(parents=True, exist_ok=True)
    (place / "calls").write_text("")
    (place / "codes").write_text("".join(f"{code}\n" for code in codes))
    code, out = run(home, RECORDER, **{"WORKDIR": str(place / "run"), **envs})
    assert (place / "codes").read_text() == "", "fewer starts than expected"
    return code, out, [call.split(" ") for call in (place / "calls").read_text().splitlines()]


def test_the_command_is_one_that_our_command_line_takes(tmp_path):
    arguments = "--config.seed=1 --config.data.source=folder:gs://b/*"
    code, _, (call,) = recorded(tmp_path, ["0"], ARGUMENTS=arguments)
    assert code == 0
    assert call[:3] == ["-u", "-m", "sintrovae_jax.main"]
    others, overrides = cli.split(call[3:])
    given = main._parser().parse(others)
    assert (given.config, given.mode) == (TASK["envs"]["CONFIG"], "train")
    assert recipe_files.find(given.config).file.is_file()
    assert files.is_remote(overrides["data.source"].partition(":")[2])
    assert cli.read_config(given.config, overrides).seed == 1


@pytest.mark.parametrize(
    ("codes", "ends"),
    [
        *((["0"], 0), (["2"], 2), (["3"], 3), (["74", "143", "0"], 0), (["1", "134", "2"], 2)),
        (["74"] * 5, 74),
        (["74", "74", "74", "74", "143 100", "74", "74", "74", "74", "74"], 74),
    ],
)
def test_exit_codes_decide_whether_it_starts_again(tmp_path, codes, ends):
    code, out, calls = recorded(tmp_path, codes)
    assert code == ends and len(calls) == len(codes)
    assert len({tuple(call) for call in calls}) == 1
    assert ("giving up: 4 restarts in a row brought no new checkpoint (exit code 74)" in out) == (ends == 74)


@pytest.mark.parametrize(("extra", "given"), [("cuda", "10.0.0.1:8476,2,1"), ("tpu", "on")])
def test_several_machines_find_each_other(tmp_path, extra, given):
    several = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"}
    _, _, (call,) = recorded(tmp_path, ["0"], EXTRA=extra, **several)
    assert cli.read_config("cifar10", cli.split(call[3:])[1]).distributed == given
    assert not [x for x in recorded(tmp_path, ["0"])[2][0] if "distributed" in x]


def test_it_names_what_there_is():
    assert TASK["envs"]["WORKDIR"] is None  # SkyPilot refuses to start without a value
    assert TASK["resources"]["use_spot"] and TASK["workdir"] == "."
    extras = {"cuda", "tpu"}
    assert TASK["envs"]["EXTRA"] in extras
    import tomllib

    assert extras < set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for script in (TASK["setup"], TASK["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        shellcheck = Path(sys.executable).with_name("shellcheck")
        if shellcheck.exists():  # what is split into words is meant to be
            line = [shellcheck, "--shell=bash", "--exclude=SC2086", "-"]
            subprocess.run(line, input=script, text=True, check=True)


@pytest.mark.soak
def test_a_job_that_was_preempted_goes_on_from_its_checkpoint(tmp_path):
    """The machine is gone with its home; the workdir, from 20 steps as any other makes them, is not."""
    python = f'#!/usr/bin/env bash\nexec "{sys.executable}" "$@"\n'
    workdir = tmp_path / "bucket" / "run"
    train("gaussians8", workdir, *TINY, QUICK, "--config.train.steps=20")
    arguments = " ".join([*TINY, QUICK, "--config.train.steps=40"])
    given = {"CONFIG": "gaussians8", "WORKDIR": str(workdir), "EXTRA": "cuda"}
    code, out = run(tmp_path / "machine", python, ARGUMENTS=arguments, **given)
    assert code == 0, out
    assert [int(row["step"]) for row in metrics(workdir)] == list(range(5, 41, 5))
    assert "resum" in out


CHECK = """
import sky, sys
task = sky.Task.from_yaml_config(__import__("yaml").safe_load(open(sys.argv[1])), [("WORKDIR", "gs://bucket/run")])
(resources,) = task.resources
print(resources.use_spot, resources.job_recovery["strategy"], dict(resources.accelerators), task.envs["WORKDIR"])
tpu = resources.copy(accelerators="tpu-v5litepod-8")
print(dict(tpu.accelerators))
try:
    sky.Task.from_yaml(sys.argv[1])
except ValueError as error:
    print("refused", "WORKDIR" in str(error))
"""


@pytest.mark.soak
def test_skypilot_reads_it(tmp_path):
    if subprocess.run([SKY, "-c", "import sky"], capture_output=True, check=False).returncode:
        pytest.skip("SkyPilot is not installed; SKY_PYTHON names a Python that has it")
    env = os.environ | {"HOME": str(tmp_path)}
    env.pop("PYTHONPATH", None)
    done = subprocess.run([SKY, "-c", CHECK, str(FILE)], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith(("True", "{", "refused"))]
    assert said == [
        "True FAILOVER {'L4': 1} gs://bucket/run",
        "{'tpu-v5litepod-8': 1}",
        "refused True",
    ], done.stderr
