#!/usr/bin/env bash
# The part of tpu_pod.sh that runs on every worker, over ssh: install, start, status, logs, stop. Not for direct use.
set -euo pipefail

self=$(realpath "$0")
base=$HOME/sintrovae # src, venv, log, pid, keeper, exit (the training's exit code), stopped (the user stopped it)
mkdir -p "$base"

# alive pid|keeper PROGRAM: checks the program too, because after a reboot another one may have the number.
alive() {
  [[ -s $base/$1 ]] && tr '\0' ' ' 2>/dev/null <"/proc/$(<"$base/$1")/cmdline" | grep -q "$2"
}

# Training counts as running until its keeper has recorded the exit code.
running() { [[ ! -e $base/exit ]] && { alive keeper tpu_worker || alive pid sintrovae_jax; }; }

# The images for v4 to v6e are Ubuntu 22.04, whose default Python is 3.10.
make_venv() {
  local python
  for python in python3.11 python3.12 python3.13; do
    if "$python" -c 'import ensurepip' 2>/dev/null; then
      "$python" -m venv --clear "$base/venv"
      return
    fi
  done
  python3 -m pip --version >/dev/null 2>&1 || { sudo apt-get update -qq && sudo apt-get install -y -qq python3-pip; }
  python3 -m pip install --quiet --user uv
  python3 -m uv venv --quiet --clear --python 3.11 --seed "$base/venv"
}

# install [REPO REF]: from the archive that was copied to this worker, or from git.
install() {
  if running; then
    echo "training is running here: nothing is installed"
    return
  fi
  rm -rf "$base/src" "$base/installed"
  mkdir "$base/src"
  if (($#)); then
    git clone --quiet "$1" "$base/src"
    git -C "$base/src" checkout --quiet "$2"
  else
    tar -xzf "$HOME/sintrovae_src.tgz" -C "$base/src"
  fi
  make_venv
  cd "$base/src"
  "$base/venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[train,tpu]'
  touch "$base/installed"
  echo "installed"
}

# start SECONDS ARGUMENTS…: detached, so that a dropped ssh does not end it.
start() {
  local i
  if running; then
    echo "training is running here already"
    return
  fi
  [[ -e $base/installed ]] || { echo "error: nothing is installed here: run tpu_pod.sh install" >&2 && exit 2; }
  rm -f "$base"/{pid,keeper,exit,stopped}
  setsid nohup bash "$self" train "$@" >>"$base/log" 2>&1 </dev/null &
  for ((i = 0; i < 100; i++)); do
    if [[ -s $base/pid ]]; then
      echo "started"
      return
    fi
    sleep 0.1
  done
  echo "error: training did not start; see $base/log" >&2
  exit 1
}

# The detached keeper. A shutdown signals every process. This one stays to record the training's exit code, and does not
# pass the signal on, because a second one would end the training before it has saved.
train() {
  local seconds=$1 pid code=0 told=
  shift
  trap : TERM INT HUP
  echo $$ >"$base/keeper"
  cd "$base/src"
  "$base/venv/bin/python" -u -m sintrovae_jax.main "$@" &
  pid=$!
  echo "$pid" >"$base/pid.new" && mv "$base/pid.new" "$base/pid"
  while kill -0 "$pid" 2>/dev/null; do
    if ((SECONDS >= seconds)) && [[ -z $told ]]; then
      told=1
      kill -TERM "$pid"
    fi
    sleep 0.5 || true
  done
  wait "$pid" || code=$?
  echo "$code" >"$base/exit.new" && mv "$base/exit.new" "$base/exit"
}

# Prints the state of training: none, running, stopped CODE (by `stop`) or exit CODE; then the newest log line.
status() {
  local what=none
  if running; then
    what=running
  elif [[ -e $base/stopped ]]; then
    what="stopped $(cat "$base/exit" 2>/dev/null || echo 143)"
  elif [[ -e $base/exit ]]; then
    what="exit $(<"$base/exit")"
  elif [[ -e $base/pid ]]; then
    what="exit 255" # the machine was lost while training ran
  fi
  echo "$(hostname): $what"
  [[ ! -s $base/log ]] || echo "$(hostname): $(tail -n 1 "$base/log" | tr '\r' '\n' | tail -n 1)"
}

stop() {
  running || { echo "no training is running here" && return; }
  touch "$base/stopped"
  kill -TERM "$(<"$base/pid")"
  echo "told to save and stop"
}

case ${1-} in
install | start | train | status | stop) "$@" ;;
logs) exec tail -n 50 -F "$base/log" ;;
*) echo "error: unknown '${1-}'" >&2 && exit 2 ;;
esac
