"""Where the registry is kept. Nothing outside this package knows which database it is."""

from clawdeploy.store.sqlite import RegistryStore, migrate

__all__ = ["RegistryStore", "migrate"]
