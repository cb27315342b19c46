CREATE TABLE account (
  bot TEXT PRIMARY KEY CHECK (length(bot) = 12 AND bot NOT GLOB '*[^a-z0-9]*'),
  opened_at REAL NOT NULL,
  limit_kind TEXT NOT NULL CHECK (limit_kind IN ('prepaid', 'day', 'month', 'unlimited')),
  limit_nano INTEGER NOT NULL CHECK (limit_nano >= 0),
  balance INTEGER NOT NULL,
  held INTEGER NOT NULL CHECK (held >= 0),
  period_start INTEGER NOT NULL,
  period_spent INTEGER NOT NULL CHECK (period_spent >= 0),
  period_held INTEGER NOT NULL CHECK (period_held >= 0),
  spent INTEGER NOT NULL CHECK (spent >= 0),
  calls INTEGER NOT NULL CHECK (calls >= 0),
  told TEXT NOT NULL CHECK (told IN ('nothing', 'low', 'used_up')),
  CHECK (balance >= held)
) STRICT, WITHOUT ROWID;

CREATE TABLE call (
  id INTEGER PRIMARY KEY,
  bot TEXT NOT NULL REFERENCES account,
  at REAL NOT NULL,
  model TEXT NOT NULL,
  payer TEXT NOT NULL CHECK (payer IN ('balance', 'operator')),
  state TEXT NOT NULL CHECK (state IN ('open', 'unknown', 'settled')),
  held INTEGER NOT NULL CHECK (held >= 0),
  how TEXT CHECK (how IN ('usage', 'generation', 'bound', 'released')),
  charged INTEGER NOT NULL CHECK (charged BETWEEN 0 AND held),
  cost INTEGER,
  prompt_tokens INTEGER,
  completion_tokens INTEGER,
  generation TEXT,
  settled_at REAL,
  CHECK ((state = 'settled') = (how IS NOT NULL)),
  CHECK ((state = 'settled') = (settled_at IS NOT NULL))
) STRICT;

CREATE INDEX call_of_bot ON call (bot, id);
CREATE INDEX call_unsettled ON call (id) WHERE state <> 'settled';

CREATE TABLE entry (
  id INTEGER PRIMARY KEY,
  bot TEXT NOT NULL REFERENCES account,
  at REAL NOT NULL,
  kind TEXT NOT NULL CHECK (kind IN ('opening', 'top_up', 'charge')),
  amount INTEGER NOT NULL CHECK ((kind = 'charge') = (amount < 0)),
  key TEXT NOT NULL UNIQUE
) STRICT;

CREATE TRIGGER entry_is_never_changed BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;
CREATE TRIGGER entry_is_never_deleted BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'entries are append-only'); END;
