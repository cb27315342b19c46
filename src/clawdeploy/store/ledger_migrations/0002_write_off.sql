-- A balance that a restored copy of the books no longer vouches for leaves them by an entry of its own.
DROP TRIGGER entry_is_never_changed;
DROP TRIGGER entry_is_never_deleted;

CREATE TABLE entry_wider (
  id INTEGER PRIMARY KEY,
  bot TEXT NOT NULL REFERENCES account,
  at REAL NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('opening', 'top_up', 'charge', 'write_off')),
  amount INTEGER NOT NULL CHECK ((kind IN ('charge', 'write_off')) = (amount < 0)),
  key TEXT NOT NULL UNIQUE
) STRICT;

INSERT INTO entry_wider SELECT id, bot, at, kind, amount, key FROM entry;
DROP TABLE entry;
ALTER TABLE entry_wider RENAME TO entry;

CREATE TRIGGER entry_is_never_changed BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;
CREATE TRIGGER entry_is_never_deleted BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;
