"""Compares kernel settings with the running kernel's; prints a JSON object of name -> state.

Arguments: JSON object of name -> value; the container this host is ("lxc"), or "none". States:

right     the kernel has this value
wrong     it has another one, and lets it be written
readonly  it has another one, and does not let it be written
absent    this kernel has no such setting (here)
machine   not looked at: outside net.* a container shares its settings with the machine underneath
"""

import json
import os
import sys
from pathlib import Path


def state(name, value, container):
    if container and not name.startswith("net."):
        return "machine"
    # As sysctl(8) has it: a "/" in the name is a "." in a file's name.
    path = Path("/proc/sys", name.translate(str.maketrans("./", "/.")))
    if not path.exists():
        return "absent"
    if path.read_text().split() == str(value).split():
        return "right"
    return "wrong" if os.access(path, os.W_OK) else "readonly"


def main(settings, kind):
    print(json.dumps({name: state(name, value, kind != "none") for name, value in settings.items()}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
