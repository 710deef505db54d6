#!/usr/bin/env bash
# Starts the trainer, the captioner, both or the demo; installs first where needed. ./start.sh --help tells more.
set -eu
here=$(cd -- "$(dirname -- "$0")" && pwd)
bash "$here/install.sh" --if-needed

if [ $# -eq 0 ] && [ -t 0 ] && [ -t 1 ]; then
    printf '%s\n' "1  Trainer" "2  Captioner" "3  Both" "4  Demo: the whole job on generated songs, in two minutes"
    printf 'Start which? [1] '
    read -r choice || choice=
    case "$choice" in
        "" | 1) set -- --mode train ;;
        2) set -- --mode caption ;;
        3) set -- --mode both ;;
        4) set -- --mode demo ;;
        *)
            printf 'Please answer 1, 2, 3 or 4.\n' >&2
            exit 1
            ;;
    esac
fi
exec "$here/env/bin/python" "$here/launch.py" "$@"
