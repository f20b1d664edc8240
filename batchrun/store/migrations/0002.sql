-- Version 2: batches at the provider. Every state is committed before the remote step it announces, so that whoever
-- finds it after a crash knows what may have happened.

-- One request file and what became of it.
--   planned    its lines are chosen and its rows are taken; nothing has left this machine
--   uploading  the upload may have begun
--   uploaded   the provider has the file
--   creating   the job may have been created
--   running    the provider has told of a job on this file
--   collected  every line has its answer, its rejection, or is pending again
--   abandoned  given up; its lines are pending again
create table batch(
  id integer primary key,
  state text not null default 'planned' check (
    state in ('planned', 'uploading', 'uploaded', 'creating', 'running', 'collected', 'abandoned')),
  model text not null,
  file_name text not null unique,
  nonce text not null unique,
  lines integer not null check (lines > 0),
  size integer not null check (size > 0),
  sha256 blob not null check (length(sha256) = 32),
  reserved_nano integer not null check (reserved_nano >= 0),
  planned_ms integer not null,
  file_id text,
  creating_ms integer,
  creates integer not null default 0 check (creates >= 0),
  ended_ms integer,
  excuse text check (excuse in ('credits', 'model', 'key', 'cancelled', 'turned')),
  left_remote integer not null default 0 check (left_remote in (0, 1)),
  check (state not in ('uploaded', 'creating', 'running', 'collected') or file_id is not null),
  check (state not in ('creating', 'running', 'collected') or creating_ms is not null),
  check ((state in ('collected', 'abandoned')) = (ended_ms is not null))
);

-- The lines of a batch that is not collected yet. They know digests, never rows: rows may move while a batch runs.
-- outcome: 0 none yet, 1 answered, 2 rejected. size: bytes of the body.
create table batch_line(
  batch integer not null references batch(id),
  line integer not null check (line >= 0),
  digest blob not null check (length(digest) = 16),
  size integer not null check (size > 0),
  outcome integer not null default 0 check (outcome between 0 and 2),
  primary key (batch, line)
) without rowid;

-- The provider's jobs on a batch's file: one, unless a create went out twice or the provider began again.
create table batch_job(
  id text primary key,
  batch integer not null references batch(id),
  status text not null,
  progress real,
  output_file_id text,
  error_file_id text,
  error text not null default '',
  seen_ms integer not null,
  moved_ms integer not null,
  cancelled_ms integer,
  collected_ms integer
) without rowid;

-- How often a line with this digest came back from a batch without an answer.
create table missed(
  digest blob primary key check (length(digest) = 16),
  times integer not null check (times >= 1)
) without rowid;

-- Sums of observed usage by the model that was asked for: estimates are fitted to them.
create table gauge(
  model text primary key,
  replies integer not null,
  bytes real not null,
  prompt_tokens real not null,
  bytes_sq real not null,
  bytes_tokens real not null,
  completion_tokens real not null,
  completion_sq real not null
) without rowid;
