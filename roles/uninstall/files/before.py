"""Notes what is on a host before clawDeploy comes, so that uninstall can leave that alone.

Arguments: the note's path, write or look, then the configuration files that the roles replace, Docker's
first. Prints one JSON object: "noted": whether there is a note; "old": whether clawDeploy came before notes
were made; "foreign": what of somebody else's the roles would take over. A note is written once.
"""

import grp
import json
import pathlib
import pwd
import shutil
import subprocess
import sys


def output(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode()


def installed():
    form = "${Package} ${db:Status-Status}\n"
    lines = output("dpkg-query", "--show", "--showformat", form).splitlines()
    return sorted({line.split()[0] for line in lines if line.endswith(" installed")})


def chains():
    """Each chain of the packet filter with its policy, by "family table chain"; tables by "family table"."""
    if not shutil.which("nft", path="/usr/sbin:/usr/bin"):
        return {}
    found = {}
    for item in json.loads(output("/usr/sbin/nft", "--json", "list", "ruleset"))["nftables"]:
        for kind in ("table", "chain"):
            if entry := item.get(kind):
                place = [entry["family"], *([entry["table"]] if kind == "chain" else []), entry["name"]]
                found[" ".join(place)] = entry.get("policy", "")
    return found


def foreign(packages, configs):
    found = [name for name in ("haproxy", "caddy") if name in packages]
    if "docker.io" not in packages and (program := shutil.which("dockerd")):
        found.append(f"a Docker that is not Debian's ({program})")
    if pathlib.Path(configs[0]).exists():
        found.append(configs[0])
    return found


def main(path, order, *configs):
    note = pathlib.Path(path)
    noted = note.exists()
    old = not noted and note.parent.exists()
    packages = installed()
    if order == "write" and not noted and not old:
        note.parent.mkdir(mode=0o711)
        present = [config for config in map(pathlib.Path, configs) if config.exists()]
        new = note.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(
            json.dumps(
                {
                    "packages": packages,
                    "users": [user.pw_name for user in pwd.getpwall()],
                    "groups": [group.gr_name for group in grp.getgrall()],
                    "chains": chains(),
                    "forwarding": pathlib.Path("/proc/sys/net/ipv4/ip_forward").read_text().strip(),
                    "configs": {str(config): config.read_text() for config in present},
                }
            )
        )
        new.rename(note)
    said = [] if noted or old else foreign(packages, configs)
    json.dump({"noted": noted, "old": old, "foreign": said}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
