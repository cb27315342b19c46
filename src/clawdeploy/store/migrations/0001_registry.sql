CREATE TABLE bot (
  id TEXT PRIMARY KEY CHECK (length(id) = 12 AND id NOT GLOB '*[^a-z0-9]*'),
  slot INTEGER NOT NULL UNIQUE CHECK (slot >= 0),
  telegram_id INTEGER NOT NULL UNIQUE,
  telegram_username TEXT NOT NULL,
  name TEXT UNIQUE,
  agent TEXT NOT NULL,
  plan TEXT NOT NULL,
  interface TEXT NOT NULL CHECK (interface IN ('api', 'ui')),
  llm_refusal TEXT NOT NULL CHECK (llm_refusal IN ('message', 'error')),
  owner TEXT,
  open_to_all INTEGER NOT NULL CHECK (open_to_all IN (0, 1)),
  state TEXT NOT NULL CHECK (state IN ('deploying', 'active')),
  suspended INTEGER NOT NULL CHECK (suspended IN (0, 1)),
  image TEXT NOT NULL,
  image_digest TEXT,
  config_hash TEXT,
  edge TEXT NOT NULL,
  gateway_token_hash TEXT NOT NULL UNIQUE,
  llm_key_hash TEXT NOT NULL UNIQUE,
  lease_run TEXT,
  lease_at INTEGER NOT NULL,
  created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE certificate_name (
  name TEXT PRIMARY KEY,
  first_seen INTEGER NOT NULL
) STRICT;
