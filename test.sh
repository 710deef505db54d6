#!/usr/bin/env bash
# Runs the tests; installs first where needed. Arguments go to pytest: ./test.sh tests/core -k lock
set -eu
cd -- "$(dirname -- "$0")"
bash install.sh --if-needed
# the models of the tests are so small that several processes are faster than several threads
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# What the program writes has to reach the disk, and tests write thousands of files: where memory can hold them, it does.
room_kib=$(df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 { print $4 }')
if [ -w /dev/shm ] && [ "${room_kib:-0}" -gt 4000000 ]; then
    folder=$(mktemp -d /dev/shm/acestep-tests.XXXXXX)
    trap 'rm -rf "$folder"' EXIT
    set -- --basetemp "$folder/tests" -o tmp_path_retention_policy=failed "$@"
fi
# each process gets a half of the list, and takes tests of another when it is done: what a file prepares is made once
env/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal "$@"
