"""Names or removes the packages that came with clawDeploy; prints them, one a line.

Arguments: purge or look, the note of what was there before, then the packages that the roles install. Of
these and of what they need, those go that were not there before and that nothing else on the host needs.
"""

import json
import os
import pathlib
import subprocess
import sys

# What is merely recommended or suggested by others does not keep a package of ours.
PLAIN = ["-o", "APT::AutoRemove::RecommendsImportant=false", "-o", "APT::AutoRemove::SuggestsImportant=false"]


def output(*command):
    environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True).stdout.decode()


def installed():
    lines = output("dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n").splitlines()
    return {line.split()[0] for line in lines if not line.endswith(" not-installed")}


def needed_by(packages):
    """The packages and everything that they depend on, at any depth."""
    without = [
        f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")
    ]
    lines = output("apt-cache", "depends", "--recurse", *without, *sorted(packages)).splitlines()
    return {line.strip().partition(":")[0] for line in lines if not line.startswith((" ", "<"))} | packages


def main(order, note, *names):
    before = set(json.loads(pathlib.Path(note).read_text())["packages"])
    present = installed()
    ours = present.intersection(names) - before
    if not ours:
        return
    candidates = needed_by(ours).intersection(present) - before
    # Ours were asked for by name; without that mark apt says which of them are needed by others.
    marked = set(output("apt-mark", "showmanual", *sorted(ours)).split())
    if marked:
        output("apt-mark", "auto", *sorted(marked))
    try:
        simulated = output("apt-get", "--simulate", *PLAIN, "autoremove").splitlines()
    finally:
        if marked and order != "purge":
            output("apt-mark", "manual", *sorted(marked))
    idle = {line.split()[1].partition(":")[0] for line in simulated if line.startswith("Remv ")}
    gone = sorted(candidates.intersection(idle))
    if gone and order == "purge":
        output("apt-get", "--yes", "--no-auto-remove", "purge", *gone)
    print("\n".join(gone))


if __name__ == "__main__":
    main(*sys.argv[1:])
