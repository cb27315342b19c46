"""Schema migrations of both databases, by yoyo: files of SQL in this package, applied in their order."""

import os
from importlib import resources
from pathlib import Path


def apply(path: Path, folder: str, check: bool = False) -> list[str]:
    """Bring a schema up to date, creating the file (0600); returns what was (check: would be) applied."""
    from yoyo import get_backend, read_migrations  # slow to import, and only few verbs need it

    migrations = read_migrations(str(resources.files("clawdeploy.store") / folder))
    if check and not path.exists():
        return [migration.id for migration in migrations]
    previous = os.umask(0o077)
    try:
        backend = get_backend(f"sqlite:///{path}")
        try:
            with backend.lock():
                pending = backend.to_apply(migrations)
                if not check:
                    backend.apply_migrations(pending)
        finally:
            backend.connection.close()
    finally:
        os.umask(previous)
    return [migration.id for migration in pending]
