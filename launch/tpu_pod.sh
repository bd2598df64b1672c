#!/usr/bin/env bash
# Creates a Cloud TPU slice with a limited lifetime, trains on it, and deletes it. See launch/README.md.
set -euo pipefail

usage() {
  cat <<'END'
tpu_pod.sh SUB-COMMAND --name NAME --zone ZONE [options] [-- ARGUMENTS OF THE TRAINING]

  create   request the slice and wait for it; one that was preempted is deleted first
  install  copy the checkout to all workers and install it
  start    start training on all workers, detached; it resumes from the newest checkpoint of the workdir
  status   the slice, and on each worker whether training runs, with the newest line of its log
  logs     follow worker 0's log
  stop     save and stop training on all workers (exit code 143); the slice stays
  delete   delete the slice, running or not

  --type TYPE             as v5litepod-16, v6e-8, v5p-32, v4-16 (create)
  --hours H               the slice lives this long at most (create); training saves and stops after it (start)
  --config RECIPE         its name or file in the checkout, with :ARGUMENT where it takes one (start)
  --bucket gs://B         the workdir is gs://B/NAME (start); or --workdir gs://…
  --spot | --flex | --reserved   the tier, on demand without; --flex: v5litepod and v6e, the service keeps --hours
  --wait-hours H          how long the request may wait for capacity (4)
  --repo URL --ref REF    install this instead of the checkout that the script is in
  --project P --service-account EMAIL --runtime VERSION --network N --subnetwork N
  --dry-run               print the gcloud commands, run none

exit codes: 0 done; 2 something to correct first (an option, a quota, the config); 4 no capacity, run the same command
again; 1 anything else; 129, 130, 143 after HUP, Ctrl-C, TERM, which delete what create has begun
END
}

readonly SUBCOMMANDS="create install start status logs stop delete"
readonly VALUED=" name zone type hours config bucket workdir wait-hours repo ref project service-account \
runtime network subnetwork "
readonly FLAGS=" spot flex reserved dry-run "
readonly PRICES=https://cloud.google.com/tpu/pricing
readonly POLL=${TPU_POD_POLL:-30}     # seconds between checks of the slice
readonly PAUSE=${TPU_POD_PAUSE:-30}   # seconds before trying again
readonly SPARE=${TPU_POD_SPARE:-1800} # seconds after --hours until the slice deletes itself

name='' zone='' type='' hours='' config='' bucket='' workdir='' wait_hours=4 repo='' ref='' project=''
service_account='' runtime='' network='' subnetwork='' spot='' flex='' reserved='' dry_run=''
training=() # arguments of the training
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tmp='' child='' owned='' creating='' answer='' complaint='' state=NONE node=''

say() { printf '%(%H:%M:%S)T %s\n' -1 "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# --- options ---

parse() {
  local option value
  while (($#)); do
    [[ $1 != -- ]] || { shift && training=("$@") && return 0; }
    [[ $1 == --* ]] || die "unexpected argument '$1'; what is for the training comes after --"
    option=${1#--} && option=${option%%=*}
    if [[ $FLAGS == *" $option "* && $1 != *=* ]]; then
      value=1
    elif [[ $VALUED != *" $option "* ]]; then
      die "unknown option '$1'; tpu_pod.sh help lists them"
    elif [[ $1 == *=* ]]; then
      value=${1#*=}
    else
      (($# > 1)) && [[ $2 != --* ]] || die "--$option needs a value"
      value=$2 && shift
    fi
    [[ -n $value ]] || die "--$option needs a value"
    printf -v "${option//-/_}" %s "$value"
    shift
  done
}

# Everything that can be refused is refused before anything costs money.
check() {
  local tiers="$spot$flex$reserved"
  [[ -n $name ]] || die "--name is missing"
  [[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
    die "--name '$name': small letters, digits and dashes only, a letter first"
  [[ -n $zone ]] || die "--zone is missing"
  [[ $zone =~ ^[a-z0-9-]+$ ]] || die "--zone '$zone' is not a zone"
  ((${#tiers} < 2)) || die "only one of --spot, --flex and --reserved"
  [[ -n $repo || -z $ref ]] && [[ -z $repo || -n $ref ]] || die "--repo and --ref go together"
  [[ -z $hours || ($hours =~ ^[0-9]+(\.[0-9]+)?$ && $hours == *[1-9]*) ]] || die "--hours '$hours' is not a time"
  [[ $1 != create ]] || check_slice
  [[ $1 != start ]] || check_training
  [[ -n $dry_run ]] || command -v gcloud >/dev/null ||
    die "gcloud is not installed: https://cloud.google.com/sdk/docs/install"
}

check_slice() {
  [[ -n $type ]] || die "--type is missing, as v5litepod-16"
  [[ -n $hours ]] || die "--hours is missing: how long the slice may live at most"
  [[ $wait_hours =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--wait-hours '$wait_hours' is not a time"
  [[ -z $flex || $type == v5litepod-* || $type == v6e-* ]] || die "--flex is for v5litepod and v6e"
  [[ -n $runtime ]] || runtime=$(runtime_of "$type") || die "--runtime is needed for --type $type"
}

check_training() {
  [[ -n $config ]] || die "--config is missing, as configs/celebahq.py"
  local file=${config/.py:*/.py} # without its argument
  [[ $file == *.py ]] || file=configs/${file%%:*}.py
  [[ -n $repo || -f $root/$file ]] || die "--config $config: $file is not in $root"
  workdir=${workdir:-${bucket:+${bucket%/}/$name}}
  [[ -n $workdir ]] || die "--bucket is missing: workers share a workdir, as --bucket gs://BUCKET"
  [[ $workdir == gs://?* ]] ||
    die "the workdir '$workdir' must be on gs://, which all workers see and a preemption leaves"
}

# docs.cloud.google.com/tpu/docs/runtimes, November 2026
runtime_of() {
  case $1 in
  v4-*) echo tpu-ubuntu2204-base ;;
  v5litepod-*) echo v2-alpha-tpuv5-lite ;;
  v5p-*) echo v2-alpha-tpuv5 ;;
  v6e-*) echo v2-alpha-tpuv6e ;;
  *) return 1 ;;
  esac
}

# The number in a type counts TensorCores for v4 and v5p (two per chip), and chips for the others.
chips_of() {
  local n=${1##*-}
  [[ $n =~ ^[0-9]+$ ]] || return 1
  case $1 in
  v4-* | v5p-*) echo $((n / 2)) ;;
  v5litepod-* | v6e-*) echo "$n" ;;
  *) return 1 ;;
  esac
}

seconds() { awk -v h="$1" 'BEGIN { printf "%d", h * 3600 + 0.5 }'; }

# --- gcloud: always in the background, so that signals are handled at once, not when gcloud is done ---

print_command() {
  printf 'gcloud'
  printf ' %q' "$@"
  printf '\n'
}

reap() {
  local code=0
  wait "$child" || code=$?
  child=''
  return "$code"
}

nap() {
  [[ -z $dry_run ]] || return 0
  sleep "$1" &
  child=$!
  reap
}

# ask DRY-RUN-ANSWER ARGUMENTS…: runs gcloud. Sets $answer to its output and $complaint to its error message.
ask() {
  local code=0 dry=$1
  shift
  if [[ -n $dry_run ]]; then
    print_command "$@"
    answer=$dry
    return 0
  fi
  gcloud "$@" </dev/null >"$tmp/out" 2>"$tmp/err" &
  child=$!
  reap || code=$?
  answer=$(<"$tmp/out")
  complaint=$(grep -A3 ERROR "$tmp/err" | tr '\n' ' ' || true)
  [[ -n $complaint || $code == 0 ]] || complaint=$(tail -n 1 "$tmp/err")
  return "$code"
}

# show ARGUMENTS…: runs gcloud with its output on the terminal.
show() {
  if [[ -n $dry_run ]]; then
    print_command "$@"
    return 0
  fi
  gcloud "$@" </dev/null &
  child=$!
  reap
}

where() { printf '%s\n' --zone="$zone" --quiet ${project:+--project="$project"}; }

queued() { # ask DRY-RUN-ANSWER about the queued resource: queued DRY VERB OPTIONS…
  local dry=$1 verb=$2
  shift 2
  ask "$dry" compute tpus queued-resources "$verb" "$name" "$@" "${place[@]}"
}

# on WORKERS ARGUMENTS…: runs tpu_worker.sh with these arguments on worker 0 or on all.
on() {
  local workers=$1 command
  shift
  printf -v command ' %q' "$@"
  show compute tpus tpu-vm ssh "$name" --worker="$workers" --command="bash tpu_worker.sh$command" "${place[@]}"
}

# --- the slice ---

# Sets $state: NONE if there is no request, ? if gcloud could not tell.
look() {
  if [[ -n $dry_run ]]; then
    queued '' describe --format='value(state.state)'
  elif queued '' describe --format='value(state.state)'; then
    state=${answer:-?}
  elif [[ $complaint == *NOT_FOUND* ]]; then
    state=NONE
  else
    state='?'
  fi
}

# Sets $node in the same way.
look_at_node() {
  if ask READY compute tpus tpu-vm describe "$name" --format='value(state)' "${place[@]}"; then
    node=${answer:-?}
  elif [[ $complaint == *NOT_FOUND* ]]; then
    node=NONE
  else
    node='?'
  fi
}

# Prints a script that runs on every worker at boot, as root: it deletes the slice when its time is over, even if nobody
# else does. That needs a service account with roles/tpu.admin; without one, it switches the machines off.
guard() {
  printf '#!/bin/bash\nname=%q zone=%q seconds=%q\n' "$name" "$zone" "$1"
  cat <<'END'
end_slice() {
  metadata() { curl -sf -H 'Metadata-Flavor: Google' "http://metadata.google.internal/computeMetadata/v1/$1"; }
  for try in 1 2 3 4 5; do
    token=$(metadata instance/service-accounts/default/token | sed 's/.*"access_token" *: *"\([^"]*\)".*/\1/')
    slice="projects/$(metadata project/project-id)/locations/$1/queuedResources/$2"
    curl -sf -X DELETE -H "Authorization: Bearer $token" "https://tpu.googleapis.com/v2/$slice?force=true" && return 0
    sleep "${3:-60}"
  done
  poweroff
}
systemd-run --unit=end-slice --on-active="$seconds" bash -c "$(declare -f end_slice); end_slice $zone $name"
END
}

create() {
  local life track=() with=(--async)
  life=$(seconds "$hours")
  [[ -z $spot ]] || with+=(--spot)
  [[ -z $reserved ]] || with+=(--reserved)
  if [[ -n $flex ]]; then
    track=(alpha) with+=(--provisioning-model=flex-start --max-run-duration="${life}s")
  fi
  [[ -z $service_account ]] ||
    with+=(--service-account="$service_account" --scopes=https://www.googleapis.com/auth/cloud-platform)
  [[ -z $network ]] || with+=(--network="$network")
  [[ -z $subnetwork ]] || with+=(--subnetwork="$subnetwork")
  guard $((life + SPARE)) >"$tmp/guard.sh"
  say "requesting $name: $type in $zone, for $((life / 60)) minutes at most"
  creating=1
  ask '' "${track[@]}" compute tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" \
    --runtime-version="$runtime" --valid-until-duration="$(seconds "$wait_hours")s" \
    --metadata-from-file=startup-script="$tmp/guard.sh" "${with[@]}" "${place[@]}" || refused "$complaint"
  creating=''
  [[ -z $dry_run ]] || state=ACTIVE
}

# refused REASON: says what to do about a rejected request; `finish` deletes whatever was created.
refused() {
  case $1 in
  *[Qq]uota*)
    die "quota refused: $1 - ask for more (console: IAM & Admin, Quotas, Cloud TPU API), or take another --zone," \
      "--type or tier; failed requests hold quota too: gcloud compute tpus queued-resources list --zone=$zone"
    ;;
  *PERMISSION_DENIED* | *INVALID_ARGUMENT* | *UNAUTHENTICATED* | *"has not been used"* | *account* | *argument*)
    die "refused: $1"
    ;;
  *)
    printf 'error: could not create %s: %s\n' "$name" "$1" >&2
    exit 1
    ;;
  esac
}

# Makes sure that an active slice with this name exists. Returns 1 if it was lost meanwhile.
ensure() {
  look
  if [[ $state == ACTIVE ]]; then
    look_at_node
    case $node in NONE | PREEMPTED | TERMINATED | STOPPED | DELETING) state="ACTIVE, its machines $node" ;; esac
  fi
  case $state in
  NONE) create ;;
  '?') refused "$complaint" ;;
  FAILED | SUSPENDING | SUSPENDED | DELETING | ACTIVE,*)
    say "$name is $state: deleting it, to create it anew"
    remove || exit 1
    create
    ;;
  *) adopt ;;
  esac
  await
}

adopt() {
  queued "$type" describe --format='value(tpu.nodeSpec[0].node.acceleratorType)' || true
  if [[ $answer != *"$type" ]]; then
    owned=''
    die "there is a $name already, of type '$answer' and not $type: take another --name"
  fi
  say "$name is there already ($state): going on with it"
}

await() {
  local patience shown='' missing=0 start=$SECONDS
  patience=$(seconds "$wait_hours")
  while :; do
    look
    [[ $state == "$shown" ]] || say "$name is $state"
    shown=$state
    case $state in
    ACTIVE) break ;;
    FAILED) failed_request && return 1 ;;
    SUSPENDING | SUSPENDED | DELETING) return 1 ;;
    NONE) ((++missing < 5)) || return 1 ;;
    esac
    if ((SECONDS - start >= patience)); then
      printf 'error: no capacity for %s in %s within %s hours: %s\n' "$type" "$zone" "$wait_hours" \
        "run the same command again, or take another --zone or tier" >&2
      exit 4
    fi
    nap "$POLL"
  done
}

failed_request() {
  queued '' describe --format='value(state.failedData.error.message)' || true
  say "the request failed: ${answer:-no reason given}"
  [[ $answer != *[Qq]uota* ]] || refused "$answer"
}

# Deletes the slice, whatever its state. Returns 1 if that failed.
remove() {
  local try
  for try in 1 2 3 4 5; do
    if queued '' delete --force; then
      say "deleted $name"
      return 0
    fi
    # The request of an interrupted create may still arrive.
    if [[ $complaint == *NOT_FOUND* && (-z $creating || $try -gt 1) ]]; then
      return 0
    fi
    nap "$PAUSE"
  done
  printf 'error: COULD NOT DELETE %s: %s\nIt may be running, and cost money. Try: %s\n' "$name" "$complaint" \
    "$(deletion)" >&2
  return 1
}

deletion() { echo "$0 delete --name $name --zone $zone${project:+ --project $project}"; }

costs() {
  local chips
  if chips=$(chips_of "$type"); then
    echo "every hour that $name is kept, $chips chips are paid for ($type, prices: $PRICES)"
  else
    echo "every hour that $name is kept is paid for (prices: $PRICES)"
  fi
}

# archive FILE: the working tree as it is, without untracked files.
archive() {
  local tree
  tree=$(
    export GIT_INDEX_FILE=$tmp/index
    git -C "$root" read-tree HEAD && git -C "$root" add --update && git -C "$root" write-tree
  ) || die "$root is not a git checkout: give --repo and --ref"
  git -C "$root" archive --format=tar.gz -o "$1" "$tree"
}

# --- sub-commands ---

cmd_create() {
  owned=1
  ensure || { say "$name was lost before it was ready" && exit 1; }
  owned=''
  say "$name is ready; $(costs)"
  say "delete it with: $(deletion)"
}

cmd_install() {
  local try source=() files=("$root/launch/tpu_worker.sh")
  if [[ -n $repo ]]; then
    source=("$repo" "$ref")
  else
    files+=("$tmp/sintrovae_src.tgz")
    [[ -n $dry_run ]] || archive "$tmp/sintrovae_src.tgz"
  fi
  for try in 1 2 3; do # ssh may need a while on new machines
    say "installing on all workers (a few minutes)"
    show compute tpus tpu-vm scp "${files[@]}" "$name:" --worker=all "${place[@]}" &&
      on all install "${source[@]}" && return 0
    nap "$PAUSE"
  done
  exit 1
}

cmd_start() {
  local limit=31536000
  [[ -z $hours ]] || limit=$(seconds "$hours")
  say "starting on all workers, workdir $workdir"
  on all start "$limit" --config "$config" --workdir "$workdir" --config.distributed=on "${training[@]}" || exit 1
}

cmd_status() {
  look
  echo "request: $state"
  [[ $state == ACTIVE || -n $dry_run ]] || return 0
  look_at_node
  echo "slice: $node"
  [[ $node == READY ]] || return 0
  on all status
}

cmd_logs() { on 0 logs; }

cmd_stop() {
  on all stop || exit 1
  say "the slice stays: $(costs)"
}

cmd_delete() {
  [[ -n $type ]] || ! queued '' describe --format='value(tpu.nodeSpec[0].node.acceleratorType)' || type=${answer##*/}
  costs
  remove || exit 1
}

# --- exit: in a trap, a bare `return` would return the status from before the trap ---

finish() {
  local code=$? tries=0
  trap '' INT TERM HUP # nothing may interrupt the deletion
  set +e
  if [[ -n $child ]]; then
    # Let a pending request finish: half a request cannot be deleted.
    while [[ -n $creating ]] && kill -0 "$child" 2>/dev/null && ((++tries < 60)); do sleep 0.5; done
    kill "$child" 2>/dev/null
    child=''
  fi
  [[ -z $owned ]] || remove || code=1
  [[ -z $tmp ]] || rm -rf "$tmp"
  exit "$code"
}

main() {
  local command=${1-}
  [[ -n $command ]] || die "no sub-command; one of: $SUBCOMMANDS"
  case $command in help | -h | --help) usage && return 0 ;; esac
  [[ " $SUBCOMMANDS " == *" $command "* ]] || die "unknown sub-command '$command'; one of: $SUBCOMMANDS"
  shift
  parse "$@"
  check "$command"
  mapfile -t place < <(where)
  tmp=$(mktemp -d)
  trap finish EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  "cmd_$command"
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || die "bash 4.4 or newer is needed; this is $BASH_VERSION"
main "$@"
