#!/bin/sh
# Print the name of a Python that the course runs on (3.11 to 3.13, with venv), or say in one sentence what is missing.
#
#     tools/find_python.sh [PYTHON]        without an argument: python3, python3.13, python3.12, python3.11, the first that fits

fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

chosen=
for candidate in ${1:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c "$fits" >/dev/null 2>&1; then
        chosen=$candidate
        break
    fi
done

if [ -z "$chosen" ]; then
    found=$("${1:-python3}" --version 2>/dev/null || echo "no Python at all")
    echo "The course needs Python 3.11, 3.12 or 3.13, but ${1:-python3} is $found: install one, or name it with" \
         "'make lab PYTHON=/path/to/python3.12'." >&2
    exit 1
fi
if ! "$chosen" -c 'import venv, ensurepip' >/dev/null 2>&1; then
    echo "$("$chosen" --version) cannot make virtual environments here: install its venv module (on Debian and Ubuntu:" \
         "apt install python3-venv), then run make again." >&2
    exit 1
fi
echo "$chosen"
