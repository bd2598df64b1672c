"""A gcloud for the tests: writes down every call and answers as the test's scenario says.

    gcloud = python standin_gcloud.py FOLDER ARGUMENTS...

FOLDER/scenario.json, all keys optional:
    lives      for each create, what `describe` answers of the request, one after another; the last one stays
    nodes      for each create, likewise of the machines
    refuse     for each create, [exit code, what is printed on stderr, whether the request exists all the same] or null
    delete     for each delete, likewise
    fail       {'scp': n, ...}: the first n of these calls fail
    slow       {'create': seconds, ...}: how long a call takes
    reason     why the request failed
    type       the type of the slice that is there
    existing   there is a slice before the first create
    workers    run what is sent over ssh, on so many workers, with FOLDER/worker0, ... as their homes
"""

import json
import os
import sys
import time


def main(folder: str, argv: list[str]) -> int:
    with open(f"{folder}/calls", "a") as file:
        file.write(json.dumps(argv) + "\n")
    scenario, path = read(f"{folder}/scenario.json"), f"{folder}/state.json"
    state = read(path) if os.path.exists(path) else {"life": 0 if scenario.get("existing") else -1}
    state.setdefault("there", bool(scenario.get("existing")))

    def turn(key: str, answers: list, life: bool = True):
        """The next of these answers; the last one stays."""
        if life:
            answers = answers[min(state["life"], len(answers) - 1)]
            key += str(state["life"])
        at = state.get(key, 0)
        state[key] = at + 1
        return answers[min(at, len(answers) - 1)]

    verb = short(argv)
    try:
        code = answer(verb, argv, scenario, state, turn, folder)
    finally:
        with open(f"{path}.{os.getpid()}", "w") as file:
            json.dump(state, file)
        os.rename(file.name, path)
    time.sleep(scenario.get("slow", {}).get(verb.split()[0], 0))
    return code


def read(path: str) -> dict:
    with open(path) as file:
        return json.load(file)


def answer(verb, argv, scenario, state, turn, folder) -> int:
    if turn(f"fail {verb}", [1] * scenario.get("fail", {}).get(verb, 0) + [0], life=False):
        return 1
    if verb in ("create", "delete"):
        return change(verb, scenario, state, turn)
    if not state["there"]:
        return missing()
    if verb.startswith("ssh"):
        return ssh(argv, scenario, folder)
    elif verb == "scp":
        for i in range(scenario.get("workers", 0)):
            os.makedirs(f"{folder}/worker{i}", exist_ok=True)
            os.spawnlp(os.P_WAIT, "cp", "cp", *argv[argv.index("scp") + 1 : -4], f"{folder}/worker{i}")
    else:
        said = {
            "describe": lambda: turn("state", scenario.get("lives", [["ACTIVE"]])),
            "node": lambda: turn("node", scenario.get("nodes", [["READY"]])),
            "type": lambda: scenario.get("type", "v5litepod-16"),
            "reason": lambda: scenario.get("reason", ""),
        }
        print(said[verb]())
    return 0


def change(verb, scenario, state, turn) -> int:
    """create or delete."""
    refused = turn(verb, [*scenario.get("refuse" if verb == "create" else verb, []), None], life=False)
    if verb == "create" and (not refused or refused[2]):
        state["life"] += 1
        state["there"] = True
    if refused:
        print(refused[1], file=sys.stderr)
        return refused[0]
    if verb == "delete":
        if not state["there"]:
            return missing()
        state["there"] = False
    return 0


def ssh(argv, scenario, folder) -> int:
    command = option(argv, "--command")
    if "workers" in scenario:
        import subprocess

        count = 1 if option(argv, "--worker") == "0" else scenario["workers"]
        homes = [f"{folder}/worker{i}" for i in range(count)]
        runs = [subprocess.Popen(["bash", "-c", command], cwd=h, env=os.environ | {"HOME": h}) for h in homes]
        return max([run.wait() for run in runs])
    return 0


def missing() -> int:
    print("ERROR: (gcloud.compute.tpus.queued-resources.x) NOT_FOUND: Resource 'x' was not found", file=sys.stderr)
    return 1


def option(argv: list[str], name: str) -> str:
    return next((a.split("=", 1)[1] for a in argv if a.startswith(f"{name}=")), "")


def short(argv: list[str]) -> str:
    """A call in a word or three: 'create', 'ssh all status'."""
    if "ssh" in argv:
        return f"ssh {option(argv, '--worker')} {option(argv, '--command').split()[2]}"
    if "scp" in argv:
        return "scp"
    if "describe" in argv:
        what = {"state.failedData.error.message": "reason", "tpu.nodeSpec[0].node.acceleratorType": "type"}
        return "node" if "tpu-vm" in argv else what.get(option(argv, "--format")[6:-1], "describe")
    return next(a for a in argv if a in ("create", "delete"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
