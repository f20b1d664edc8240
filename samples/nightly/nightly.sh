#!/bin/sh
# One night: start the job, and do what its exit code asks for. Usage: nightly.sh [JOB.toml]
#
# Ends with 0 when nobody needs to look, else with batchrun's own exit code, after one line on standard error that says
# what a person should do. Cron mails that line; ALERT_COMMAND gets it as its one argument, if it is set.
#
#   BATCHRUN       the command (batchrun)
#   TRIES          starts in one night at most (5)
#   PAUSE          seconds between two starts (1800)
#   ALERT_COMMAND  a command that tells somebody, such as a script that sends a message

set -u

job=${1:-nightly.toml}
batchrun=${BATCHRUN:-batchrun}
tries=${TRIES:-5}
pause=${PAUSE:-1800}

child=
stopped=0

# A shell waits for its child before it looks at a signal, so the child runs beside it and is told: calls in flight are
# paid for, and batchrun keeps their answers before it ends.
stop() {
    stopped=$((stopped + 1))
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap stop INT TERM HUP

# Run a command and leave its exit code in $code. A signal may end `wait` before the child has ended, so after one it is
# asked again; 127 then says that the code before was the child's own.
attend() {
    "$@" &
    child=$!
    [ "$stopped" -eq 0 ] || kill -TERM "$child" 2>/dev/null
    code=
    while :; do
        before=$stopped
        wait "$child"
        ended=$?
        if [ -z "$code" ] || [ "$ended" -ne 127 ]; then code=$ended; fi
        [ "$stopped" -ne "$before" ] || break
    done
    child=
}

tell() {
    echo "$job: $1 (exit $code)" >&2
    [ -z "${ALERT_COMMAND:-}" ] || "$ALERT_COMMAND" "$job: $1 (exit $code)" || echo "ALERT_COMMAND failed" >&2
}

person() {
    tell "$1"
    exit "$code"
}

try=1
while :; do
    attend "$batchrun" run --job "$job"
    [ "$stopped" -eq 0 ] || exit "$code" # somebody said stop: what was paid is kept, and nobody needs to be told

    case $code in
    0) exit 0 ;; # every row is answered
    8) exit 0 ;; # the start before still runs and does the same work
    130 | 143) exit "$code" ;; # batchrun itself was told to stop, not this script

    # Time mends these: try again tonight.
    5) later="the server is overloaded or cannot be reached" ;;
    7) later="batches are still running at the provider" ;;
    137) later="the run was killed, perhaps for want of memory" ;; # the next start goes on where it was

    # These want a person: the same command would end the same way, or spend what was not allowed.
    2) person "usage, job file, input or key: read the lines above" ;;
    3) person "out of credits: top up, and the next night goes on" ;;
    4) person "the key was refused: set one that works" ;;
    6) person "the budget is used up or the deadline has passed: raise max-cost in the job file, or let the next night go on" ;;
    9) person "no such model, or nearly every row is rejected: mend the job" ;;
    10) person "finished, but more rows are rejected than allowed: batchrun errors $job" ;;
    11) person "the checkpoint, the disk or the output cannot be written or trusted: read the lines above" ;;
    126 | 127) person "the command $batchrun cannot be started" ;;
    *) person "a bug in batchrun, or something nobody thought of; what was paid for is kept" ;;
    esac

    if [ "$try" -ge "$tries" ]; then
        # Batches that take longer than a night are no trouble: the next night collects them.
        [ "$code" -ne 7 ] || exit 0
        person "$later, after $tries starts; the next night goes on"
    fi
    try=$((try + 1))
    failed=$code
    attend sleep "$pause"
    [ "$stopped" -eq 0 ] || exit "$failed"
done
