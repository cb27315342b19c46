CREATE TABLE remote (
  id TEXT PRIMARY KEY CHECK (length(id) = 12 AND id NOT GLOB '*[^a-z0-9]*'),
  name TEXT NOT NULL UNIQUE,
  telegram_id INTEGER NOT NULL UNIQUE,
  telegram_username TEXT NOT NULL,
  target TEXT NOT NULL CHECK (target IN ('fly')),
  agent TEXT NOT NULL,
  llm_refusal TEXT NOT NULL CHECK (llm_refusal IN ('message', 'error')),
  settings TEXT NOT NULL CHECK (json_valid(settings)),
  state TEXT NOT NULL CHECK (state IN ('deploying', 'active')),
  suspended INTEGER NOT NULL CHECK (suspended IN (0, 1)),
  reason TEXT NOT NULL,
  llm_key_hash TEXT NOT NULL UNIQUE,
  created_at INTEGER NOT NULL
) STRICT;
