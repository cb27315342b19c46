"""Where the registry and the ledger are kept. Nothing outside this package knows which database it is."""

from clawdeploy.store.ledger import LedgerStore, check_ledger_copy, migrate_ledger
from clawdeploy.store.sqlite import RegistryStore, migrate

__all__ = ["LedgerStore", "RegistryStore", "check_ledger_copy", "migrate", "migrate_ledger"]
