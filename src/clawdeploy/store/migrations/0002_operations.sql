CREATE TABLE suspension (
  bot TEXT PRIMARY KEY REFERENCES bot ON DELETE CASCADE,
  reason TEXT NOT NULL,
  since INTEGER NOT NULL
) STRICT;

CREATE TABLE container (
  bot TEXT PRIMARY KEY REFERENCES bot ON DELETE CASCADE,
  spec TEXT NOT NULL
) STRICT;

CREATE TABLE kept (
  id TEXT PRIMARY KEY CHECK (length(id) = 12 AND id NOT GLOB '*[^a-z0-9]*'),
  slot INTEGER NOT NULL UNIQUE CHECK (slot >= 0),
  telegram_id INTEGER NOT NULL UNIQUE,
  telegram_username TEXT NOT NULL,
  name TEXT,
  agent TEXT NOT NULL,
  plan TEXT NOT NULL,
  owner TEXT,
  kept_at INTEGER NOT NULL
) STRICT;

CREATE TABLE event (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  at REAL NOT NULL,
  bot TEXT,
  label TEXT,
  kind TEXT NOT NULL,
  message TEXT NOT NULL,
  details TEXT NOT NULL CHECK (json_valid(details))
) STRICT;

CREATE INDEX event_of_bot ON event (bot, id);

CREATE TRIGGER event_is_never_changed BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER event_goes_only_by_age BEFORE DELETE ON event WHEN OLD.id > (SELECT max(id) FROM event) - 100000 BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER event_old_ones_go AFTER INSERT ON event BEGIN DELETE FROM event WHERE id <= NEW.id - 100000; END;
