"""Prints what the bots of this host are placed by, as a JSON object; an empty one while there are no bots.

Arguments: path of host.json, path of the registry.
"""

import json
import sys
from pathlib import Path

KEYS = ("bot_pool", "bot_subnet_prefix", "bot_uid_base")


def placement(host_file, registry):
    if not (host_file.exists() and registry.exists()):
        return {}
    import sqlite3  # not in python3-minimal, but in what a prepared host has

    with sqlite3.connect(f"file:{registry}?mode=ro", uri=True) as db:
        has_table = db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'bot'").fetchone()
        if not has_table or not db.execute("SELECT 1 FROM bot LIMIT 1").fetchone():
            return {}
    host = json.loads(host_file.read_text())
    return {key: host[key] for key in KEYS}


if __name__ == "__main__":
    print(json.dumps(placement(Path(sys.argv[1]), Path(sys.argv[2]))))
