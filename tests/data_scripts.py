"""Data scripts for the tests, as a language model may write them: a good one, and those that do everything wrong."""

from __future__ import annotations

HEAD = """\
import argparse, json, os, pathlib, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--input", type=pathlib.Path)
parser.add_argument("--output", type=pathlib.Path)
parser.add_argument("--debug", action="store_true")
args = parser.parse_args()
rows = [json.loads(line) for line in (args.input / "train.jsonl").open()]
def emit(rows):
    with args.output.open("w") as file:
        for row in rows:
            file.write(json.dumps(row) + "\\n")
def good(row):
    return {"instruction": row["question"], "output": row["answer"]}
"""
GOOD = HEAD + "emit(good(row) for row in rows if row['level'] == 'hard')\n"

# What is wrong -> (script, whether the debug run finds it, what the report says)
WRONG: dict[str, tuple[str, str, str]] = {
    "loops": (HEAD + "while True: pass\n", "debug", "stopped at its deadline of 2 s"),
    "loops on all rows": (HEAD + "emit(map(good, rows))\nwhile not args.debug: pass\n", "full", "deadline of 2 s"),
    "prints without end": (
        HEAD + "while True: print('x' * 100_000)\n",
        "debug",
        "it printed more than 1 MiB",
    ),
    "emits nothing": (HEAD, "debug", "it ended normally, but wrote no file to --output"),
    "emits an empty file": (HEAD + "emit([])\n", "debug", "no row was written"),
    "emits 1 row": (
        HEAD + "emit([good(rows[0])])\n",
        "full",
        "too few different rows that can be trained on: 1, at least 10 are needed",
    ),
    "wrong keys": (
        HEAD + "emit([{'text': row['question']} for row in rows])\n",
        "debug",
        "no usable columns among text",
    ),
    "a typo": (HEAD + "emit(good(row) for row in rowz)\n", "debug", "NameError: name 'rowz' is not defined"),
    "no Python": ("Sure! Here is the script:\n", "debug", "SyntaxError"),
    "an exit code": (HEAD + "sys.exit(3)\n", "debug", "ended with exit code 3"),
    "a link for a result": (
        HEAD + "os.symlink('/etc/passwd', args.output)\n",
        "debug",
        "data.jsonl is a symbolic link, where a plain file is wanted",
    ),
    "a pipe for a result": (HEAD + "os.mkfifo(args.output)\n", "debug", "data.jsonl is a pipe, a socket or a device"),
    "a directory for a result": (HEAD + "args.output.mkdir()\n", "debug", "wrote no file to --output"),
    "closed directories": (
        HEAD + "os.makedirs('a/b'); os.chmod('a', 0)\nsys.exit(3)\n",
        "debug",
        "ended with exit code 3",
    ),
}
