"""Where the registry and the ledger are kept. Nothing outside this package knows which database it is."""

from clawdeploy.store.ledger import LedgerStore, migrate_ledger
from clawdeploy.store.sqlite import RegistryStore, migrate

__all__ = ["LedgerStore", "RegistryStore", "migrate", "migrate_ledger"]
