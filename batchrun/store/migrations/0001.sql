-- The checkpoint, version 1. Two ideas: `request` is what is wanted now and is rebuilt when the input changes;
-- `paid` is what has been paid for, append-only. Illegal rows are refused here, not by care in the code.

-- What the user asked for (JSON, without the key), and the settled columns of the output.
create table job(
  one integer primary key check (one = 1),
  provider text not null,
  job text not null,
  columns text not null
);

-- The input files that `request` was built from, in order.
create table source(
  id integer primary key,
  path text not null,
  size integer not null,
  mtime_ns integer not null,
  rows integer not null check (rows >= 0)
);

-- One row for each input row. state: 0 pending, 1 submitted, 2 answered, 3 rejected, 4 again (answered, a better reply
-- is wanted). `answer` is the id of the paid reply, present exactly in 2 and 4. No index on digest: it would cost
-- ten times the writes, and is needed only when the input changes.
create table request(
  row integer primary key check (row >= 0),
  digest blob not null check (length(digest) = 16),
  state integer not null default 0 check (state between 0 and 4),
  answer integer,
  check ((state in (2, 4)) = (answer is not null))
);

-- Texts that repeat in every paid reply: models, finish reasons, lanes.
create table name(
  id integer primary key,
  text text not null unique
);

-- Every reply that was paid for, in order of payment. surplus: why it is no row's answer (null: it is, or may become
-- one): 'twice' may still serve an equal row, 'cut' and 'invalid' never.
create table paid(
  id integer primary key,
  digest blob not null check (length(digest) = 16),
  lane integer not null references name(id),
  model integer not null references name(id),
  finish integer not null references name(id),
  prompt_tokens integer check (prompt_tokens >= 0),
  completion_tokens integer check (completion_tokens >= 0),
  cached_tokens integer check (cached_tokens >= 0),
  cost_nano integer check (cost_nano >= 0),
  latency_ms integer not null check (latency_ms >= 0),
  attempts integer not null check (attempts >= 1),
  kept_ms integer not null,
  fault text check (fault in ('cut_short', 'filtered', 'invalid_output')),
  checksum integer not null,
  surplus text check (surplus in ('twice', 'cut', 'invalid')),
  check ((prompt_tokens is null) = (completion_tokens is null))
);

-- Compression dictionaries; never changed, never deleted, since bodies need them.
create table dictionary(
  id integer primary key,
  content blob not null
);

-- The whole reply of the paid row with the same id: a zstd frame.
create table body(
  id integer primary key references paid(id),
  dictionary integer references dictionary(id),
  reply blob not null check (typeof(reply) = 'blob')
);

-- Why rows with this digest were rejected.
create table rejection(
  digest blob primary key check (length(digest) = 16),
  fault text not null,
  status integer,
  message text not null,
  attempts integer not null check (attempts >= 0),
  kept_ms integer not null
) without rowid;

-- One row for each start. An open run has no closed_ms; one that is found open has crashed, and its high-water marks
-- count as spent. doubt: calls that may have been paid for and brought nothing that could be kept.
create table run(
  id integer primary key,
  opened_ms integer not null,
  closed_ms integer,
  state text not null default 'open' check (state in ('open', 'finished', 'parked', 'failed', 'crashed')),
  reason text,
  token blob not null check (length(token) = 16),
  kept integer not null default 0 check (kept >= 0),
  mark_calls integer not null default 0 check (mark_calls >= 0),
  mark_nano integer not null default 0 check (mark_nano >= 0),
  doubt_calls integer not null default 0 check (doubt_calls >= 0),
  doubt_nano integer not null default 0 check (doubt_nano >= 0),
  learned text,
  check ((state = 'open') = (closed_ms is null))
);

-- Counters, written in the transaction they count, so that `status` is instant.
create table tally(
  state integer primary key check (state between 0 and 4),
  rows integer not null check (rows >= 0)
);
insert into tally(state, rows) values (0, 0), (1, 0), (2, 0), (3, 0), (4, 0);

create table spend(
  lane integer not null references name(id),
  model integer not null references name(id),
  replies integer not null check (replies >= 0),
  unpriced integer not null check (unpriced >= 0),
  prompt_tokens integer not null check (prompt_tokens >= 0),
  completion_tokens integer not null check (completion_tokens >= 0),
  cost_nano integer not null check (cost_nano >= 0),
  primary key (lane, model)
) without rowid;

-- Answers in slices of ten seconds, for the rate of the last minute; old slices are trimmed.
create table pulse(
  ten_s integer primary key,
  replies integer not null check (replies >= 0),
  tokens integer not null check (tokens >= 0)
);

-- The output files that were written, as they were then: an unchanged one is not written again.
create table written(
  path text primary key,
  size integer not null,
  mtime_ns integer not null,
  revision integer not null
) without rowid;

-- The diary: one line an episode.
create table event(
  id integer primary key,
  at_ms integer not null,
  kind text not null,
  detail text not null
);
