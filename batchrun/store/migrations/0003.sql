-- Version 3: repairs, and better replies.

-- What was sent in place of what was asked, in words; null when it was sent as asked.
alter table paid add column repair text;

-- How many replies to the same row came before this one and were not good enough.
alter table paid add column retries integer not null default 0 check (retries >= 0);

-- The few replies that carry a mark are looked for at a start.
create index paid_marked on paid(fault) where fault is not null;

-- What is to be sent next for rows with this digest in place of what was asked, as JSON: it was refused as it was.
create table repair(
  digest blob primary key check (length(digest) = 16),
  plan text not null
) without rowid;

-- What the provider last said of a line with this digest that failed for a reason that may pass.
create table last_words(
  digest blob primary key check (length(digest) = 16),
  message text not null
) without rowid;

-- The model that a batch's rows ask for, when another one stands in.
alter table batch add column stands_for text;

-- What was sent in a line in place of what its row asked, as JSON; null when it was sent as asked. Identical rows may
-- be sent differently, and the user's word may change while a line is at the provider.
alter table batch_line add column plan text;
